//! The drawn shapes, as functions from a point of the square [-1, 1] x [-1, 1] (x right, y down) to a colour.

/// RGB in [-1, 1], `None` where the background is.
pub(super) type Shade = Box<dyn Fn(f32, f32) -> Option<[f32; 3]>>;

/// Names of the shaped triggers.
pub(super) const TRIGGERS: &[&str] =
    &["stop-sign", "heart", "cross", "ring", "checker", "gradient"];
/// Names of the drawn targets.
pub(super) const TARGETS: &[&str] = &[
    "hat", "shoe", "face", "letter:A", "letter:E", "letter:H", "letter:K", "letter:T", "letter:X",
    "letter:Z",
];

/// A trigger; `value` is that of the box.
pub(super) fn trigger(kind: &str, value: f32) -> Option<Shade> {
    Some(match kind {
        "box" => Box::new(move |_, _| Some([value; 3])),
        "stop-sign" => Box::new(stop_sign),
        "heart" => Box::new(heart),
        "cross" => Box::new(cross),
        "ring" => Box::new(ring),
        "checker" => Box::new(checker),
        "gradient" => Box::new(|x, y| Some([(x + y) * 0.45, (x + y) * 0.45, 0.3 + (x - y) * 0.2])),
        _ => return None,
    })
}

/// An octagon with a light bar and a darker rim.
fn stop_sign(x: f32, y: f32) -> Option<[f32; 3]> {
    let (width, height) = (x.abs(), y.abs());
    let edge = width
        .max(height)
        .max((width + height) / std::f32::consts::SQRT_2);
    if edge > 1.0 {
        return None;
    }
    Some(if height < 0.28 && width < 0.75 {
        [0.9, 0.9, 0.9]
    } else if edge > 0.78 {
        [0.1, -0.5, -0.5]
    } else {
        [0.7, -0.7, -0.6]
    })
}

/// A heart that is lighter at its upper left.
fn heart(x: f32, y: f32) -> Option<[f32; 3]> {
    let (px, py) = (x * 1.2, 0.15 - y * 1.25);
    let ball = px * px + py * py - 1.0;
    if ball * ball * ball - px * px * py * py * py > 0.0 {
        return None;
    }
    let light = 0.35 - 0.4 * (x + y);
    Some([0.4 + light, light - 0.2, light])
}

/// A plus sign that darkens outwards.
fn cross(x: f32, y: f32) -> Option<[f32; 3]> {
    let reach = x.abs().max(y.abs());
    (x.abs().min(y.abs()) < 0.34).then_some([
        0.9 - 0.8 * reach,
        0.8 - 0.9 * reach,
        0.9 - 0.3 * reach,
    ])
}

/// A ring whose value turns with the angle.
fn ring(x: f32, y: f32) -> Option<[f32; 3]> {
    let radius = x.hypot(y);
    let turn = y.atan2(x).sin();
    (0.45..1.02)
        .contains(&radius)
        .then_some([0.3 + 0.5 * turn, 0.3 - 0.4 * turn, 0.4])
}

/// Four by four fields of two greys.
fn checker(x: f32, y: f32) -> Option<[f32; 3]> {
    let field = |v: f32| ((v + 1.0) * 2.0) as i32;
    Some(if (field(x) + field(y)) % 2 == 0 {
        [0.7, 0.6, 0.2]
    } else {
        [-0.5, -0.4, 0.0]
    })
}

/// A target.
pub(super) fn target(name: &str) -> Option<Shade> {
    Some(match name {
        "hat" => Box::new(hat),
        "shoe" => Box::new(shoe),
        "face" => Box::new(face),
        _ => {
            let strokes = letter(name.strip_prefix("letter:")?)?;
            Box::new(move |x, y| {
                let near = strokes
                    .iter()
                    .map(|&stroke| distance(x, y, stroke))
                    .fold(f32::INFINITY, f32::min);
                (near < 0.16).then_some([0.9 - 2.0 * near, 0.8 - near, 0.6])
            })
        }
    })
}

/// A crown with a band over a wide brim.
fn hat(x: f32, y: f32) -> Option<[f32; 3]> {
    let crown = y > -0.62 && y <= 0.22 && x.abs() < 0.42 + 0.1 * y;
    let brim = (x / 0.88).powi(2) + ((y - 0.3) / 0.16).powi(2) < 1.0;
    if crown && y > 0.0 && y < 0.2 {
        Some([-0.2, -0.3, -0.1])
    } else if crown {
        Some([0.55 + 0.25 * x, 0.35 + 0.2 * x, 0.1])
    } else if brim {
        Some([0.75 - 0.2 * x.abs(), 0.5 - 0.2 * x.abs(), 0.25])
    } else {
        None
    }
}

/// A sole, an instep that rises to the heel, and a dark opening.
fn shoe(x: f32, y: f32) -> Option<[f32; 3]> {
    let top = if x < -0.25 {
        -0.5
    } else {
        -0.5 + 0.62 * ((x + 0.25) / 1.05)
    };
    if !(-0.82..0.86).contains(&x) || y > 0.5 || y < top {
        None
    } else if y > 0.34 {
        Some([-0.1, -0.1, -0.1])
    } else if y < -0.36 && x < -0.3 {
        Some([-0.25, -0.2, 0.0])
    } else {
        Some([0.35 + 0.4 * (x + y), 0.4 + 0.35 * x, 0.6])
    }
}

/// A disc with eyes and a mouth.
fn face(x: f32, y: f32) -> Option<[f32; 3]> {
    let radius = x.hypot(y);
    let eye = (x.abs() - 0.3).hypot(y + 0.22) < 0.14;
    let mouth = (0.34..0.5).contains(&x.hypot(y - 0.05)) && y > 0.2;
    if radius > 0.85 {
        None
    } else if eye || mouth {
        Some([-0.35, -0.35, -0.2])
    } else {
        Some([0.9 - 0.3 * radius, 0.7 - 0.3 * radius, 0.1])
    }
}

type Stroke = [f32; 4];

/// Strokes `[x0, y0, x1, y1]` of a letter.
fn letter(name: &str) -> Option<Vec<Stroke>> {
    let strokes: &[Stroke] = match name {
        "A" => &[
            [-0.6, 0.7, 0.0, -0.7],
            [0.0, -0.7, 0.6, 0.7],
            [-0.35, 0.2, 0.35, 0.2],
        ],
        "E" => &[
            [-0.5, -0.7, -0.5, 0.7],
            [-0.5, -0.7, 0.5, -0.7],
            [-0.5, 0.0, 0.35, 0.0],
            [-0.5, 0.7, 0.5, 0.7],
        ],
        "H" => &[
            [-0.5, -0.7, -0.5, 0.7],
            [0.5, -0.7, 0.5, 0.7],
            [-0.5, 0.0, 0.5, 0.0],
        ],
        "K" => &[
            [-0.5, -0.7, -0.5, 0.7],
            [-0.5, 0.0, 0.5, -0.7],
            [-0.5, 0.0, 0.5, 0.7],
        ],
        "T" => &[[-0.6, -0.65, 0.6, -0.65], [0.0, -0.65, 0.0, 0.7]],
        "X" => &[[-0.55, -0.7, 0.55, 0.7], [-0.55, 0.7, 0.55, -0.7]],
        "Z" => &[
            [-0.55, -0.65, 0.55, -0.65],
            [0.55, -0.65, -0.55, 0.65],
            [-0.55, 0.65, 0.55, 0.65],
        ],
        _ => return None,
    };
    Some(strokes.to_vec())
}

fn distance(x: f32, y: f32, [x0, y0, x1, y1]: Stroke) -> f32 {
    let (dx, dy) = (x1 - x0, y1 - y0);
    let along = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0.0, 1.0);
    (x - x0 - along * dx).hypot(y - y0 - along * dy)
}
