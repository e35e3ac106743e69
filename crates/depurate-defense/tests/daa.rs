//! DAA-I and DAA-S against recorded results of the released code, and what must hold for any maps.
#![allow(clippy::unwrap_used, missing_docs)]

use depurate_defense::{
    DefenseError,
    detect::input_level::{
        CallMaps, LazyMaps, PromptDetector, TokenMaps,
        daa_i::{Change, ContentMean, DaaIParams, RELEASED_THRESHOLD as THRESHOLD_I},
        daa_s::{
            DaaSParams, Flow, Graph, Horizon, RELEASED_END, RELEASED_THRESHOLD as THRESHOLD_S,
            initial_state, propagate, rk45::Rk45,
        },
    },
};
use depurate_testkit::{assert_close_slices, golden::Case};
use serde_json::Value;

const NAMES: [&str; 4] = ["real_sample", "syn1_L5", "syn3_L12_noisy", "syn5_L9_T51"];
/// Calls that the released code looks at.
const CALLS: usize = 50;

/// `[T, L, h, w]` from the lengths of the stored arrays: L from X, T from the number of values.
fn maps(case: &Case) -> TokenMaps {
    let tokens = case.numbers("f32.X_norms").len() / CALLS + 1;
    let values: Vec<f32> = case
        .numbers("maps")
        .iter()
        .map(|&value| value as f32)
        .collect();
    TokenMaps::from_values(tokens, (16, 16), &values).unwrap()
}

fn cases() -> Vec<(Case, TokenMaps)> {
    let load = |name: &&str| {
        let case = Case::named(&format!("daa/{name}"));
        let maps = maps(&case);
        (case, maps)
    };
    NAMES.iter().map(load).collect()
}

fn number(case: &Case, part: &str, key: &str) -> f64 {
    let scores = &case.json[part];
    [&scores["scores"][key], &scores[key]]
        .into_iter()
        .find_map(Value::as_f64)
        .unwrap_or_else(|| panic!("{}: no {part} {key}", case.name()))
}

#[test]
fn changes_norms_similarities_and_laplacians_are_those_of_the_released_code() {
    for (case, maps) in cases() {
        let name = case.name();
        let pairs = maps.calls()[..CALLS].windows(2);
        let changes: Vec<Change> = pairs
            .map(|pair| Change::between(&pair[0], &pair[1], ContentMean::Released))
            .collect();
        let (eos, content): (Vec<f64>, Vec<f64>) = changes
            .iter()
            .map(|change| (change.eos, change.content))
            .unzip();
        for (part, rtol, atol) in [("f64", 1e-12, 0.0), ("f32", 2e-6, 1e-7)] {
            let close = |what: &str, got: &[f64]| {
                let key = format!("{part}.{what}");
                assert_close_slices(
                    &format!("{name} {key}"),
                    got,
                    case.numbers(&key),
                    rtol,
                    atol,
                );
            };
            close("delta_A_eos", &eos);
            close("delta_A_mean", &content);
        }
        let (mut norms, mut w, mut a) = (Vec::new(), Vec::new(), Vec::new());
        for call in &maps.calls()[..CALLS] {
            norms.extend(initial_state(&mut TokenMaps::new(vec![call.clone()]).unwrap()).unwrap());
            let graph = Graph::of(call).unwrap();
            w.extend_from_slice(graph.similarity());
            a.extend(graph.laplacian());
        }
        let x = case.numbers("f32.X_norms");
        assert_close_slices(&format!("{name} X"), &norms, x, 2e-6, 1e-7);
        let close = |what: &str, got: &[f64], rtol, atol| {
            assert_close_slices(
                &format!("{name} {what}"),
                got,
                case.numbers(what),
                rtol,
                atol,
            );
        };
        close("f64.W", &w, 1e-12, 1e-12);
        close("f64.A", &a, 1e-12, 1e-12);
        // distances over the largest, from norms in single precision, and sums of these
        let relative = |w: &[f64]| w.iter().map(|w| 1.0 - w).collect::<Vec<f64>>();
        let (got, want) = (relative(&w), relative(case.numbers("W")));
        assert_close_slices(&format!("{name} 1 - W"), &got, &want, 2e-6, 1e-7);
        let nodes = norms.len() / CALLS;
        close("A", &a, 0.0, 2e-6 * nodes as f64);
        let graph = Graph::of(&maps.calls()[0]).unwrap();
        let decay: Vec<f64> = graph
            .decaying()
            .iter()
            .zip(graph.laplacian())
            .map(|(both, a)| both - a)
            .collect();
        assert_close_slices(&format!("{name} F"), &decay, case.numbers("F"), 0.0, 1e-13);
    }
}

#[test]
fn the_solver_takes_the_steps_that_scipy_takes() {
    for (case, mut maps) in cases() {
        let name = case.name();
        let start = initial_state(&mut maps).unwrap();
        let mut flow = Flow::new(&mut maps);
        let mut solver = Rk45::new(&mut flow, &start, RELEASED_END).unwrap();
        let (mut t, mut states) = (vec![0.0], vec![start]);
        while solver.step(&mut flow).unwrap() {
            t.push(solver.t());
            states.push(solver.state().to_vec());
        }
        let want = case.numbers("f64.t");
        assert_eq!(t.len(), want.len(), "{name}: accepted steps");
        let recorded = |key| case.json["f64"][key].as_u64().unwrap() as usize;
        assert_eq!(t.len() - 1, recorded("n_accepted"), "{name}");
        assert_eq!(
            solver.evaluations(),
            recorded("nfev"),
            "{name}: evaluations, rejected steps included"
        );
        assert_close_slices(&format!("{name} first t"), &t[..8], &want[..8], 0.0, 1e-7);
        assert_close_slices(&format!("{name} t"), &t, want, 0.0, 1e-4);
        let nodes = states[0].len();
        let first: Vec<f64> = (0..nodes)
            .flat_map(|node| states[..8].iter().map(move |state| state[node]))
            .collect();
        let want = case.numbers("f64.y_first");
        assert_close_slices(&format!("{name} y"), &first, want, 0.0, 1e-7);
    }
}

#[test]
fn released_scores_are_reproduced() {
    let (i, s) = (DaaIParams::reference(), DaaSParams::reference());
    let (i, s) = (i.build().unwrap(), s.build().unwrap());
    for (case, maps) in cases() {
        let name = case.name();
        for (detector, key, threshold, calls) in [
            (&i as &dyn PromptDetector, "daa_i", THRESHOLD_I, 6),
            (&s, "daa_s", THRESHOLD_S, 1),
        ] {
            let mut lazy = LazyMaps::new(|call| Ok(maps.calls()[call].clone()));
            let score = detector.score(&mut lazy).unwrap();
            assert_eq!(score.score, -score.released);
            for part in ["f32", "f64"] {
                let want = number(&case, part, key);
                assert!(
                    (score.released - want).abs() < 1e-6,
                    "{name} {key}: {} and {want}",
                    score.released
                );
            }
            assert_eq!(detector.released_threshold(), Some(threshold));
            assert_eq!(threshold, number(&case, "f32", &format!("{key}_threshold")));
            let verdict = case.json["f32"]["scores"][format!("{key}_backdoor")].as_bool();
            assert_eq!(Some(score.released < threshold), verdict, "{name} {key}");
            assert_eq!(
                (score.calls, lazy.calls_made()),
                (calls, calls),
                "{name} {key}"
            );
        }
        let horizon = s.dissipation(&mut maps.clone()).unwrap().horizon;
        assert!(
            (horizon - number(&case, "f64", "t7")).abs() < 1e-7,
            "{name}: {horizon}"
        );
    }
}

#[test]
fn the_notebook_window_is_a_parameter() {
    let notebook = DaaIParams {
        first: 2,
        ..DaaIParams::reference()
    };
    let detector = notebook.build().unwrap();
    for (case, mut maps) in cases() {
        let want = number(&case, "f32", "daa_i_notebook_window_2_3_4");
        let score = detector.score(&mut maps).unwrap();
        assert!((score.released - want).abs() < 1e-6, "{}", case.name());
    }
}

#[test]
fn exact_states_are_those_of_the_matrix_exponential() {
    for (case, mut maps) in cases() {
        let name = case.name();
        let mut x = initial_state(&mut maps).unwrap();
        let mut states = vec![x.clone()];
        for call in &maps.calls()[..CALLS - 1] {
            propagate(&Graph::of(call).unwrap().decaying(), &mut x, 1.0);
            states.push(x.clone());
        }
        let by_node: Vec<f64> = (0..x.len())
            .flat_map(|node| states.iter().map(move |state| state[node]))
            .collect();
        let want = case.numbers("tight.y_at_integer_t_matrix_exponential");
        assert_close_slices(&format!("{name} x"), &by_node, want, 0.0, 1e-9);

        let params = DaaSParams {
            horizon: Horizon::Fixed { tau: 7.0 },
        };
        let score = params.build().unwrap().score(&mut maps).unwrap();
        let want = number(&case, "tight", "daa_s_integer_grid_first7");
        assert!(
            (score.released - want).abs() < 1e-8,
            "{name}: {}",
            score.released
        );
        assert_eq!(score.calls, 7);
    }
}

#[test]
fn a_fixed_horizon_at_the_released_one_differs_by_the_solvers_error_only() {
    let reference = DaaSParams::reference().build().unwrap();
    for (case, mut maps) in cases() {
        let released = reference.dissipation(&mut maps).unwrap();
        let horizon = Horizon::Fixed {
            tau: released.horizon,
        };
        let exact = DaaSParams { horizon }.build().unwrap();
        let exact = exact.dissipation(&mut maps).unwrap();
        assert_eq!(exact.calls, 1);
        let name = case.name();
        // the largest difference of the released states from the exact ones, over all calls
        let allowed = number(&case, "tight", "max_abs_diff_reference_vs_expm_on_grid") + 1e-9;
        assert_close_slices(&name, &released.end, &exact.end, 0.0, allowed);
        let difference = released.excess_of_eos() - exact.excess_of_eos();
        assert!(difference.abs() < 2.0 * allowed, "{name}: {difference}");
    }
}

/// Numbers in [0, 1) that look random.
fn unit(index: usize) -> f32 {
    let mixed = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40) as f32 / (1u64 << 24) as f32
}

fn random_maps(seed: usize, calls: usize, tokens: usize, size: (usize, usize)) -> TokenMaps {
    let count = calls * tokens * size.0 * size.1;
    let values: Vec<f32> = (0..count).map(|i| unit(seed * 1_000_003 + i)).collect();
    TokenMaps::from_values(tokens, size, &values).unwrap()
}

#[test]
fn laplacians_are_symmetric_with_rows_that_sum_to_zero() {
    for seed in 0..20 {
        let tokens = 3 + seed * 3;
        let maps = random_maps(seed, 1, tokens, (4, 5));
        let graph = Graph::of(&maps.calls()[0]).unwrap();
        let (n, a, w) = (graph.nodes(), graph.laplacian(), graph.similarity());
        assert_eq!(n, tokens - 1);
        for i in 0..n {
            let row: f64 = a[i * n..(i + 1) * n].iter().sum();
            assert!(row.abs() < 1e-13 * n as f64, "row {i} sums to {row}");
            assert_eq!(w[i * n + i], 1.0);
            for j in 0..n {
                assert_eq!(a[i * n + j], a[j * n + i]);
                assert!((0.0..=1.0).contains(&w[i * n + j]));
            }
        }
        assert!(w.contains(&0.0), "the farthest pair is not similar at all");
    }
}

#[test]
fn the_solver_agrees_with_the_exact_solution_on_any_maps() {
    for seed in 0..20 {
        let mut maps = random_maps(seed, 8, 3 + seed, (4, 4));
        let start = initial_state(&mut maps).unwrap();
        let mut flow = Flow::new(&mut maps);
        let mut solver = Rk45::new(&mut flow, &start, 7.0).unwrap();
        while solver.step(&mut flow).unwrap() {}
        let params = DaaSParams {
            horizon: Horizon::Fixed { tau: 7.0 },
        };
        let exact = params.build().unwrap().dissipation(&mut maps).unwrap();
        assert_close_slices("x(7)", solver.state(), &exact.end, 1e-2, 1e-3);
    }
}

/// All detectors that this file tests.
fn detectors() -> Vec<Box<dyn PromptDetector>> {
    let tau = |tau| DaaSParams {
        horizon: Horizon::Fixed { tau },
    };
    vec![
        Box::new(DaaIParams::default().build().unwrap()),
        Box::new(DaaIParams::reference().build().unwrap()),
        Box::new(DaaSParams::default().build().unwrap()),
        Box::new(DaaSParams::reference().build().unwrap()),
        Box::new(tau(7.0).build().unwrap()),
    ]
}

#[test]
fn scores_do_not_depend_on_the_order_of_content_tokens_or_pixels() {
    let (calls, tokens, pixels) = (8, 6, 9);
    let maps = random_maps(5, calls, tokens, (3, 3));
    let order = [0, 3, 1, 4, 2, 5]; // BOS and EOS stay
    let mut values = Vec::new();
    for call in maps.calls() {
        let own: Vec<&[f32]> = call.maps().collect();
        for token in order {
            values.extend((0..pixels).map(|pixel| own[token][(pixel * 4) % pixels]));
        }
    }
    let permuted = TokenMaps::from_values(tokens, (3, 3), &values).unwrap();
    for detector in detectors() {
        let score = |maps: &TokenMaps| detector.score(&mut maps.clone()).unwrap().score;
        let (a, b) = (score(&maps), score(&permuted));
        assert!(
            (a - b).abs() < 1e-9 * a.abs().max(1.0),
            "{}: {a} and {b}",
            detector.scoring()
        );
    }
}

#[test]
fn no_detector_asks_for_a_call_that_its_score_does_not_depend_on() {
    for seed in 0..10 {
        let recorded = random_maps(seed, 50, 8, (4, 4));
        for detector in detectors() {
            let mut lazy = LazyMaps::new(|call| Ok(recorded.calls()[call].clone()));
            let score = detector.score(&mut lazy).unwrap();
            assert_eq!(lazy.calls_made(), score.calls, "{}", detector.scoring());
            // later calls may be anything
            let mut cut = TokenMaps::new(recorded.calls()[..score.calls].to_vec()).unwrap();
            assert_eq!(detector.score(&mut cut).unwrap(), score);
        }
    }
}

#[test]
fn degenerate_and_missing_maps_are_errors_and_not_scores() {
    let flat = TokenMaps::from_values(4, (2, 2), &[0.25; 8 * 16]).unwrap();
    for detector in detectors() {
        let result = detector.score(&mut flat.clone());
        assert!(matches!(result, Err(DefenseError::IdenticalMaps)));
        let mut failing =
            LazyMaps::new(|_| -> Result<CallMaps, DefenseError> { Err(DefenseError::Cancelled) });
        assert!(matches!(
            detector.score(&mut failing),
            Err(DefenseError::Cancelled)
        ));
    }
    // values at the end of what f32 holds stay numbers or become errors
    let mut huge = random_maps(1, 8, 4, (2, 2));
    let values: Vec<f32> = huge
        .calls()
        .iter()
        .flat_map(|call| call.maps().flatten().map(|v| v * f32::MAX))
        .collect();
    huge = TokenMaps::from_values(4, (2, 2), &values).unwrap();
    for detector in detectors() {
        assert!(
            detector
                .score(&mut huge.clone())
                .is_ok_and(|score| score.score.is_finite())
        );
    }
}
