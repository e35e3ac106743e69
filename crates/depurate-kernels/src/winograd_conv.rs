//! Convolution 3x3, stride 1, padding 1, by Winograd: forward, and (with turned weights) the gradient to the input.
//!
//! Weights are transformed in every call, or once for weights that do not change ([`crate::winograd_weights`]).

use crate::gemm::{Gemm, Start, Steps, Strided};
use crate::isa::{Isa, Kernel};
use crate::parallel::{self, Shared};
use crate::simd::Simd;
use crate::transpose::to_planes;
use crate::winograd::{IN, OUT, POINTS, output};
use crate::winograd_tiles::{Ring, Tiles, point_stride};
use crate::winograd_weights::{Direction, Packed, Transformed};
use crate::{ConvShape, scratch};

/// Tiles that a task transforms and multiplies at a time: their values should stay in the second-level cache.
const TILES_PER_TASK: usize = 64;

/// Runs the convolution of `x` to `y`; `shape` describes the weights' own direction.
pub(crate) fn run(
    x: &[f32],
    (w, transformed): (&[f32], Option<&Transformed>),
    bias: Option<&[f32]>,
    shape: ConvShape,
    direction: Direction,
    y: &mut [f32],
    isa: Isa,
) {
    let (k, n) = match direction {
        Direction::Forward => (shape.c_in, shape.c_out),
        Direction::Backward => (shape.c_out, shape.c_in),
    };
    let tiles = Tiles::new(shape.batch, shape.height, shape.width);
    let packed = Packed::new(k, n, isa);
    let make = |u: &mut [f32]| packed.fill(w, direction, u, isa);
    let kept = transformed.and_then(|kept| kept.of(direction, packed, isa, make));
    let own = kept.map_or(POINTS * packed.point, |_| 0);
    let biases = bias.map_or(1, |bias| bias.len() / n);
    let padded = n.next_multiple_of(isa.lanes());
    let mut scratch = scratch::take([own, biases * padded]);
    let [own, padded_bias] = scratch.slices();
    padded_bias.fill(0.0);
    if let Some(bias) = bias {
        for (to, from) in padded_bias
            .chunks_exact_mut(padded)
            .zip(bias.chunks_exact(n))
        {
            to[..n].copy_from_slice(from);
        }
    }
    let u = match kept {
        Some(kept) => kept,
        None => {
            make(own);
            &*own
        }
    };
    let per_task = (TILES_PER_TASK / tiles.across)
        .min(tiles.rows.div_ceil(rayon::current_num_threads()))
        .max(1);
    let out = Shared::write(y);
    parallel::for_each(tiles.rows.div_ceil(per_task), |task| {
        let rows = task * per_task..((task + 1) * per_task).min(tiles.rows);
        isa.run(RowsOfTiles {
            x,
            u,
            bias: padded_bias,
            bias_step: if biases == 1 { 0 } else { padded },
            tiles,
            packed,
            rows,
            y: out,
        });
    });
}

/// The convolution of some rows of tiles. Tasks write disjoint rows of `y`.
struct RowsOfTiles<'a> {
    x: &'a [f32],
    u: &'a [f32],
    bias: &'a [f32],
    /// Floats from one image's bias to the next one's.
    bias_step: usize,
    tiles: Tiles,
    packed: Packed,
    rows: std::ops::Range<usize>,
    y: Shared,
}

impl Kernel for RowsOfTiles<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (t, p) = (self.tiles, self.packed);
        let count = self.rows.len() * t.across;
        let (kp, np) = (
            p.k.next_multiple_of(S::LANES),
            p.n.next_multiple_of(S::LANES),
        );
        let (v_point, m_point) = (point_stride(count, kp), point_stride(count, np));
        let lengths = [
            t.scratch(kp),
            POINTS * v_point,
            POINTS * m_point,
            OUT * t.width * np,
        ];
        let mut scratch = scratch::take(lengths);
        let [ring, v, m, out] = scratch.slices();
        let mut places = scratch::offsets();
        let input = InputRows {
            x: self.x,
            tiles: t,
            channels: p.k,
            rows: self.rows.clone(),
        };
        // SAFETY: scratch has the lengths computed above; x and y cover the batch; each point's product reads and
        // writes its own part.
        unsafe {
            input.transform::<S>(ring, &mut places, v, v_point);
            for point in 0..POINTS {
                S::call(Gemm {
                    m: count,
                    n: np,
                    k: p.k,
                    a: Strided {
                        at: v.as_ptr().add(point * v_point),
                        row: kp,
                        step: 1,
                    },
                    b: Steps {
                        at: self.u.as_ptr().add(point * p.point),
                        step: p.width,
                    },
                    b_panel: p.panel,
                    c: m.as_mut_ptr().add(point * m_point),
                    c_row: np,
                    start: Start::Zero,
                    exact: false,
                });
            }
            for (i, row) in self.rows.clone().enumerate() {
                let m = m.as_ptr().add(i * t.across * np);
                self.transform_output::<S>(row, m, m_point, out.as_mut_ptr(), np);
            }
        }
    }
}

/// The input's side of some rows of tiles.
pub(crate) struct InputRows<'a> {
    pub x: &'a [f32],
    pub tiles: Tiles,
    pub channels: usize,
    pub rows: std::ops::Range<usize>,
}

impl InputRows<'_> {
    /// Fills `v` with the transformed rows of tiles.
    #[inline(always)]
    pub(crate) unsafe fn transform<S: Simd>(
        &self,
        ring: &mut [f32],
        places: &mut Vec<usize>,
        v: &mut [f32],
        v_point: usize,
    ) {
        let t = self.tiles;
        let padded = self.channels.next_multiple_of(S::LANES);
        let at = ring.as_mut_ptr();
        let mut ring = Ring {
            tiles: t,
            channels: self.channels,
            padded,
            at,
            places,
        };
        // SAFETY: ring and v have the lengths that `Tiles` gives; the rows exist in x.
        unsafe {
            ring.clear();
            for (i, row) in self.rows.clone().enumerate() {
                let (n, down) = (row / t.down, row % t.down);
                let image = self.x.as_ptr().add(n * self.channels * t.height * t.width);
                ring.move_to::<S>(image, down, i == 0 || down == 0);
                let points = v.as_mut_ptr().add(i * t.across * padded);
                ring.transform_input::<S>(down, points, v_point);
            }
        }
    }
}

impl RowsOfTiles<'_> {
    /// Aᵀ m A and the bias, to channels-last pixels and then to the planes.
    #[inline(always)]
    unsafe fn transform_output<S: Simd>(
        &self,
        row: usize,
        m: *const f32,
        m_point: usize,
        out: *mut f32,
        np: usize,
    ) {
        let t = self.tiles;
        let (image, down) = (row / t.down, row % t.down);
        let high = OUT.min(t.height - down * OUT);
        // SAFETY: m holds 36 points of the row's tiles; out holds 4 rows; y's rows down * 4.. + high are this task's.
        unsafe {
            for tile in 0..t.across {
                let wide = OUT.min(t.width - tile * OUT);
                for c in (0..np).step_by(S::LANES) {
                    let from = m.add(tile * np + c);
                    let bias = S::load(self.bias.as_ptr().add(image * self.bias_step + c));
                    let zero = S::splat(0.0);
                    let mut half = [[zero; IN]; OUT];
                    for x in 0..IN {
                        let mut d = [zero; IN];
                        for y in 0..IN {
                            d[y] = S::load(from.add((y * IN + x) * m_point));
                        }
                        let d = output::<S>(d);
                        for y in 0..OUT {
                            half[y][x] = d[y];
                        }
                    }
                    for y in 0..OUT {
                        let d = output::<S>(half[y]);
                        let to = out.add((y * t.width + tile * OUT) * np + c);
                        for x in 0..OUT {
                            if y < high && x < wide {
                                S::store(to.add(x * np), S::add(d[x], bias));
                            }
                        }
                    }
                }
            }
            let plane = t.height * t.width;
            let to = self
                .y
                .at(image * self.packed.n * plane + down * OUT * t.width);
            to_planes::<S>(out, np, self.packed.n, high * t.width, to, plane);
        }
    }
}
