use depurate_defense::{*, detect::model_level::shift_response::ShiftResponseParams};
use depurate_diffusion::{Device, Pipeline, noise::SeedTree};
fn main() {
    for path in std::env::args().skip(1) {
        let model = Pipeline::load(path.as_ref(), &Default::default(), &Device::flex()).unwrap();
        let cancel = CancelToken::default();
        let cx = Cx { rng: SeedTree::new(0), budget: Budget::UNLIMITED, cancel: &cancel, progress: &Silent, journal: &NoJournal };
        let start = std::time::Instant::now();
        let found = ShiftResponseParams::quick().build().unwrap().inspect(&model, &cx).unwrap();
        println!("{path}: score {:.3} residual {:.3} converged {} evaluations {} in {:.1?}", found.score, found.inversion.objective, found.inversion.converged, found.evaluations, start.elapsed());
        for r in &found.inversion.restarts { println!("   {} residual {:.3} norm {:.2} converged {} {}", r.start, r.objective, r.norm, r.converged, if r.selected {"*"} else {""}); }
        for c in &found.comparisons { print!("   {} {:.5} |", c.name, c.value); for k in &c.controls { print!(" {:.4}", k.value); } println!(); }
    }
}
