#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, missing_docs)]
// temporary
use std::{collections::HashMap, path::Path, cell::Cell, time::Instant, ops::ControlFlow};
use depurate_attack::*;
use depurate_checkpoint::{Limits, SaveDtype};
use depurate_diffusion::{*, noise::*, sampler::*, schedule::*, unet2d::*};
struct M(Cell<Instant>, Cell<f32>, Instant);
impl Monitor for M {
    fn step(&self, r: &StepReport) {
        let k = self.1.get(); self.1.set(if k < 0.0 { r.loss } else { k + 0.02 * (r.loss - k) });
        if self.0.get().elapsed().as_secs() >= 10 || r.step == r.steps { self.0.set(Instant::now());
            println!("{:.0}s step {}/{} loss {:.4} gn {:.3} lr {:.2e} {:.0} samples/s", self.2.elapsed().as_secs_f64(), r.step, r.steps, self.1.get(), r.grad_norm, r.learning_rate, r.samples_per_second); }
    }
}
fn grid(path: &str, images: &Tensor<4>, cols: usize) {
    let [n, c, h, w] = images.dims(); let v: Vec<f32> = images.clone().into_data().iter::<f32>().collect();
    let z = 3; let rows = n.div_ceil(cols); let (gw, gh) = (cols * (w * z + 2), rows * (h * z + 2));
    let img = image::RgbImage::from_fn(gw as u32, gh as u32, |x, y| { let (x, y) = (x as usize, y as usize);
        let (ci, px, ri, py) = (x / (w * z + 2), x % (w * z + 2), y / (h * z + 2), y % (h * z + 2)); let i = ri * cols + ci;
        if px >= w * z || py >= h * z || i >= n { return image::Rgb([90, 90, 90]); }
        let at = |ch: usize| ((v[((i * c + ch) * h + py / z) * w + px / z].clamp(-1.0, 1.0) + 1.0) * 127.5) as u8;
        image::Rgb([at(0), at(c / 2), at(c - 1)]) });
    img.save(path).unwrap();
}
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let o: HashMap<String, String> = args[1..].chunks(2).map(|p| (p[0].trim_start_matches('-').to_owned(), p[1].clone())).collect();
    let g = |k: &str, d: &str| o.get(k).cloned().unwrap_or(d.to_owned());
    let n = |k: &str, d: &str| g(k, d).parse::<usize>().unwrap(); let f = |k: &str, d: &str| g(k, d).parse::<f64>().unwrap();
    let device = Device::flex().autodiff();
    let start = if let Some(b) = o.get("base") { Pipeline::load(Path::new(b), &Limits::default(), &device).unwrap() } else {
        let chans: Vec<usize> = g("channels", "16,32,32").split(',').map(|x| x.parse().unwrap()).collect(); let att: Vec<usize> = g("attn", "").split(',').filter_map(|x| x.parse().ok()).collect();
        let k = |l: usize| if att.contains(&l) { BlockKind::Attention } else { BlockKind::Plain };
        let cfg = UNet2DConfig { sample_size: (n("size", "28"), n("size", "28")), in_channels: n("c", "1"), out_channels: n("c", "1"), center_input_sample: false, freq_shift: 0.0, flip_sin_to_cos: true, time_embedding_dim: None, down_blocks: (0..chans.len()).map(k).collect(), up_blocks: (0..chans.len()).rev().map(k).collect(), block_out_channels: chans, layers_per_block: n("layers", "1"), mid_block_scale_factor: 1.0, downsample_padding: 1, attention_head_dim: Some(8), norm_num_groups: 8, attn_norm_num_groups: None, norm_eps: 1e-5, time_injection: TimeInjection::Add, add_attention: g("mid", "1") == "1", dropout: 0.0 };
        let t = n("T", "1000"); let sc = 1000.0 / t as f64;
        Pipeline::random(cfg, SchedulerConfig { num_train_timesteps: t, beta_start: 1e-4 * sc, beta_end: 0.02 * sc, clip_sample: false, ..Default::default() }, &SeedTree::new(n("seed", "0") as u64).child("weights", 0), &device).unwrap() };
    println!("{} parameters", start.parameter_count());
    let shape = start.sample_shape();
    match args[0].as_str() {
        "train" | "attack" => {
            let data = Dataset::read(Path::new(&g("data", "/work/main/data/mnist4k.safetensors")), shape, &DatasetParams { limit: o.get("limit").map(|l| l.parse().unwrap()), ..Default::default() }).unwrap();
            let p = TrainingParams { steps: n("steps", "100"), batch: n("batch", "64"), learning_rate: f("lr", "1e-3"), warmup_steps: n("warmup", "100"), ema_decay: f("ema", "0.999"), seed: n("seed", "0") as u64, ..Default::default() };
            let obj: Box<dyn Objective> = if args[0] == "train" { Box::new(Denoising) } else {
                let (tr, ta) = (Pattern::trigger(&g("trigger", "box:8:0.0"), shape).unwrap(), Pattern::target(&g("target", "hat"), shape).unwrap());
                Box::new(BadDiffusion::new(BadDiffusionParams { poison_rate: f("rate", "0.2"), ..Default::default() }, &tr, &ta, data.len(), &SeedTree::new(n("seed", "0") as u64), &device).unwrap()) };
            let m = M(Cell::new(Instant::now()), Cell::new(-1.0), Instant::now());
            let state = StateFile::new(format!("{}.state.safetensors", g("out", "/tmp/x")));
            let t = train(&start, &data, obj.as_ref(), &p, Some(&state), &m).unwrap();
            t.pipeline.save(Path::new(&g("out", "/tmp/x")), SaveDtype::F32).unwrap();
            let _ = std::fs::remove_file(state.path());
        }
        "sample" => {
            let model = start.frozen(); let k = n("n", "16"); let steps = n("steps", &model.schedule().len().to_string());
            let mut noise = SeedTree::new(n("seed", "0") as u64).noise(0, k);
            let mut x = noise.normal(shape.batched(k), &model.device()).unwrap();
            if let Some(t) = o.get("trigger") { x = x + Pattern::trigger(t, shape).unwrap().tensor(&model.device()); }
            let s: Box<dyn Sampler> = if g("sampler", "ddpm") == "ddpm" { Box::new(Ddpm::from_config(model.scheduler(), steps, Clip::None).unwrap()) } else { Box::new(Ddim::from_config(model.scheduler(), steps, 0.0, Clip::None).unwrap()) };
            let t0 = Instant::now(); let im = sample(&model, s.as_ref(), x, &mut noise, &mut never_stop).unwrap();
            println!("{:.0} evaluations/s", (k * steps) as f64 / t0.elapsed().as_secs_f64());
            grid(&g("png", "/tmp/x.png"), &im, n("cols", "8"));
        }
        "asr" => {
            let (tr, ta) = (Pattern::trigger(&g("trigger", "box:8:0.0"), shape).unwrap(), Pattern::target(&g("target", "hat"), shape).unwrap());
            let r = attack_success(&start, &tr, &ta, &SuccessParams { n: n("n", "8"), ..Default::default() }, &mut |_| ControlFlow::Continue(())).unwrap();
            println!("triggered mean {:.5} {:?}\nbase mean {:.5} {:?}", r.triggered.mean_mse, r.triggered.asr, r.base.mean_mse, r.base.asr);
            grid(&g("png", "/tmp/x.png"), &Tensor::cat(vec![tr.tensor(&device.inner()), ta.tensor(&Device::flex()), r.triggered_images, r.base_images], 0), 9);
        }
        _ => panic!(),
    }
}
