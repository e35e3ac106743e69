//! Times one piece of work after another, for `tools/bench-vs-pytorch/bench.py`.
//!
//! Reads a piece of work a line, as JSON, runs it for a while unmeasured and then as often as the first argument says, and answers
//! with the median of the seconds that it took. The first turn of a piece also prepares its operands. Any other line is
//! answered with `ready`.

use std::{
    collections::HashMap,
    error::Error,
    io::{BufRead, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use depurate_checkpoint::{Limits, read_json};
use depurate_diffusion::{
    AttentionKind, AttentionSite, Denoiser, Device, NoTap, Pipeline, Site, Tap, Tensor,
    noise::{NoiseSource, SeedTree},
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};
use depurate_kernels::{ConvShape, attention, conv1x1, conv3x3, group_norm, peak};
use depurate_training::{Dataset, Denoising, TrainingParams, train};
use serde::Deserialize;

/// As in the programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The threads have to be woken, and the scheduler needs time to spread them.
const WARM_UP: Duration = Duration::from_millis(100);

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Pass {
    Forward,
    ForwardBackward,
    InputGradient,
}

#[derive(Deserialize)]
#[serde(tag = "work", rename_all = "kebab-case", deny_unknown_fields)]
enum Work {
    Conv {
        batch: usize,
        c_in: usize,
        size: usize,
        c_out: usize,
        pass: Pass,
    },
    GroupNormSilu {
        batch: usize,
        channels: usize,
        size: usize,
        groups: usize,
    },
    Attention {
        heads: usize,
        width: usize,
        queries: usize,
        keys: usize,
        pass: Pass,
        /// Whether the map is wanted too.
        #[serde(default)]
        tap: bool,
    },
    Linear {
        batch: usize,
        tokens: usize,
        wide_in: usize,
        wide_out: usize,
    },
    Unet {
        dir: PathBuf,
        batch: usize,
        pass: Pass,
        /// Edge of the images, if not the model's own.
        #[serde(default)]
        size: Option<usize>,
    },
    /// A text-conditional UNet with random weights, on its own size of latents.
    ConditionalUnet {
        config: PathBuf,
        batch: usize,
        tokens: usize,
        /// Keep the prompt's maps at layers of this reduction (0: of every layer), averaged over heads.
        #[serde(default)]
        tapped: Option<usize>,
    },
    /// What the processor can do; the answer is the time of 10^9 operations.
    Peak,
    TrainingSteps {
        dir: PathBuf,
        batch: usize,
        steps: usize,
    },
}

fn main() -> Result<(), Box<dyn Error>> {
    // as in the programs: this thread works too, so that a kernel has one thread less to wake
    rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global()?;
    let runs: usize = std::env::args().nth(1).ok_or("how many runs?")?.parse()?;
    let mut prepared: HashMap<String, Timed> = HashMap::new();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if !line.starts_with('{') {
            writeln!(out, "ready")?;
            out.flush()?;
            continue;
        }
        let known = prepared.remove(&line);
        let mut run = match known {
            Some(run) => run,
            None => prepare(serde_json::from_str(&line)?)?,
        };
        let warm = Instant::now() + WARM_UP;
        run()?;
        while Instant::now() < warm {
            run()?;
        }
        let mut times = (0..runs).map(|_| run()).collect::<Result<Vec<_>, _>>()?;
        times.sort_by(f64::total_cmp);
        writeln!(out, "{}", times[times.len() / 2])?;
        out.flush()?;
        prepared.insert(line, run);
    }
    Ok(())
}

fn filled(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.618).sin()).collect()
}

/// Prepared work: does it once and gives the seconds that it took.
type Timed = Box<dyn FnMut() -> Result<f64, Box<dyn Error>>>;

fn prepare(work: Work) -> Result<Timed, Box<dyn Error>> {
    Ok(match work {
        Work::Conv {
            batch,
            c_in,
            size,
            c_out,
            pass,
        } => conv(
            ConvShape {
                batch,
                c_in,
                c_out,
                height: size,
                width: size,
            },
            pass,
        ),
        Work::GroupNormSilu {
            batch,
            channels,
            size,
            groups,
        } => normalisation(group_norm::Shape {
            batch,
            channels,
            hw: size * size,
            groups,
            eps: 1e-5,
            silu: true,
        }),
        Work::Attention {
            heads,
            width,
            queries,
            keys,
            pass,
            tap,
        } => attend(
            attention::Shape {
                heads,
                width,
                queries,
                keys,
                scale: (width as f32).powf(-0.5),
            },
            pass,
            tap,
        ),
        Work::Linear {
            batch,
            tokens,
            wide_in,
            wide_out,
        } => linear(ConvShape {
            batch,
            c_in: wide_in,
            c_out: wide_out,
            height: 1,
            width: tokens,
        }),
        Work::Unet {
            dir,
            batch,
            pass,
            size,
        } => network(&dir, batch, pass, size)?,
        Work::ConditionalUnet {
            config,
            batch,
            tokens,
            tapped,
        } => conditional(&config, batch, tokens, tapped)?,
        Work::Peak => Box::new(|| Ok(1e9 / peak::operations_per_second())),
        Work::TrainingSteps { dir, batch, steps } => training(&dir, batch, steps)?,
    })
}

fn seconds(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn conv(s: ConvShape, pass: Pass) -> Timed {
    let (x, w, bias) = (
        filled(s.input_len()),
        filled(s.c_out * s.c_in * 9),
        filled(s.c_out),
    );
    let mut y = vec![0.0; s.batch * s.c_out * s.height * s.width];
    let (mut gx, mut gw, mut gb) = (x.clone(), w.clone(), bias.clone());
    Box::new(move || {
        seconds(|| {
            conv3x3::forward(&x, &w, Some(&bias), s, &mut y);
            if pass != Pass::Forward {
                conv3x3::input_grad(&y, &w, s, &mut gx);
                conv3x3::weight_grad(&x, &y, s, &mut gw);
                depurate_kernels::bias_grad(&y, s.batch, s.c_out, s.height * s.width, &mut gb);
            }
            Ok(())
        })
    })
}

fn normalisation(s: group_norm::Shape) -> Timed {
    let x = filled(s.batch * s.channels * s.hw);
    let (gamma, beta) = (filled(s.channels), filled(s.channels));
    let (mut y, mut gx) = (x.clone(), x.clone());
    let (mut ggamma, mut gbeta) = (gamma.clone(), beta.clone());
    Box::new(move || {
        seconds(|| {
            group_norm::forward(&x, &gamma, &beta, s, &mut y);
            // the gradient is changed in place; PyTorch's stays, so ours has to be copied
            gx.copy_from_slice(&y);
            group_norm::backward(&x, &mut gx, &gamma, &beta, s, &mut ggamma, &mut gbeta, None);
            Ok(())
        })
    })
}

/// A linear layer on planar tokens, forward.
fn linear(s: ConvShape) -> Timed {
    let (x, w, bias) = (
        filled(s.input_len()),
        filled(s.c_out * s.c_in),
        filled(s.c_out),
    );
    let mut y = vec![0.0; s.batch * s.c_out * s.width];
    Box::new(move || {
        seconds(|| {
            conv1x1::forward(&x, &w, Some(&bias), s, &mut y);
            Ok(())
        })
    })
}

fn attend(s: attention::Shape, pass: Pass, tap: bool) -> Timed {
    let (q, k) = (
        filled(s.heads * s.width * s.queries),
        filled(s.heads * s.width * s.keys),
    );
    let (mut y, mut lse) = (q.clone(), vec![0.0; s.heads * s.queries]);
    let (mut gq, mut gk, mut gv) = (q.clone(), k.clone(), k.clone());
    let mut map = vec![0.0; if tap { s.heads * s.keys * s.queries } else { 0 }];
    Box::new(move || {
        seconds(|| {
            if tap {
                attention::map(&q, &k, s, &mut map);
                attention::mix(&map, &k, s, &mut y);
                return Ok(());
            }
            attention::forward(&q, &k, &k, s, &mut y, &mut lse);
            if pass != Pass::Forward {
                let saved = attention::Saved {
                    q: &q,
                    k: &k,
                    v: &k,
                    y: &y,
                    lse: &lse,
                };
                attention::backward(saved, &y, s, &mut gq, &mut gk, &mut gv);
            }
            Ok(())
        })
    })
}

fn network(
    dir: &Path,
    batch: usize,
    pass: Pass,
    size: Option<usize>,
) -> Result<Timed, Box<dyn Error>> {
    let plain = Device::flex();
    let device = match pass {
        Pass::Forward => plain.clone(),
        _ => plain.clone().autodiff(),
    };
    let mut pipeline = Pipeline::load(dir, &Limits::default(), &device)?;
    if pass == Pass::InputGradient {
        pipeline = pipeline.frozen();
    }
    let mut shape = pipeline.sample_shape().batched(batch);
    if let Some(size) = size {
        (shape[2], shape[3]) = (size, size);
    }
    let x = SeedTree::new(0).noise(0, batch).normal(shape, &plain)?;
    let t = vec![500; batch];
    Ok(Box::new(move || {
        seconds(|| {
            let input: Tensor<4> = match pass {
                Pass::Forward => x.clone(),
                Pass::ForwardBackward => x.clone().autodiff(),
                Pass::InputGradient => x.clone().autodiff().require_grad(),
            };
            let value = pipeline.predict(input, &t, &mut NoTap)?.value;
            if pass == Pass::Forward {
                value.into_data();
            } else {
                value.square().mean().backward();
            }
            Ok(())
        })
    }))
}

/// Keeps the prompt's maps, averaged over heads.
struct Maps {
    /// Reduction of the layers, 0 for all.
    reduction: usize,
    kept: Vec<Tensor<3>>,
}

impl Tap for Maps {
    fn wants(&self, _site: Site<'_>) -> bool {
        false
    }

    fn observe(&mut self, _site: Site<'_>, _value: &Tensor<4>) {}

    fn wants_map(&self, site: &AttentionSite<'_>) -> bool {
        let here = self.reduction == 0 || site.reduction == self.reduction;
        here && site.kind == AttentionKind::Prompt
    }

    fn observe_map(&mut self, site: &AttentionSite<'_>, map: &Tensor<3>) {
        let [all, keys, queries] = map.dims();
        let by_head = map
            .clone()
            .reshape([all / site.heads, site.heads, keys * queries]);
        self.kept.push(by_head.mean_dim(1));
    }
}

fn conditional(
    path: &Path,
    batch: usize,
    tokens: usize,
    tapped: Option<usize>,
) -> Result<Timed, Box<dyn Error>> {
    let config = UNet2DConditionConfig::from_json(&read_json(path, &Limits::default())?, path)?;
    let (device, seed) = (Device::flex(), SeedTree::new(0));
    let unet = UNet2DCondition::new(&config, &seed, &device);
    let ((rows, columns), width) = (config.sample_size, config.cross_attention_dim);
    let mut noise = seed.noise(0, batch);
    let x = noise.normal([batch, config.in_channels, rows, columns], &device)?;
    let states: Tensor<3> = noise
        .normal([batch, 1, width, tokens], &device)?
        .reshape([batch, width, tokens]);
    let t = vec![500; batch];
    Ok(Box::new(move || {
        seconds(|| {
            let mut maps = Maps {
                reduction: tapped.unwrap_or_default(),
                kept: vec![],
            };
            let tap: &mut dyn Tap = if tapped.is_some() {
                &mut maps
            } else {
                &mut NoTap
            };
            unet.forward(x.clone(), &t, states.clone(), None, tap)?
                .into_data();
            Ok(())
        })
    }))
}

fn training(dir: &Path, batch: usize, steps: usize) -> Result<Timed, Box<dyn Error>> {
    let device = Device::flex().autodiff();
    let pipeline = Pipeline::load(dir, &Limits::default(), &device)?;
    let shape = pipeline.sample_shape();
    let bytes = (0..256 * shape.len())
        .map(|i| (i * 7 % 251) as u8)
        .collect();
    let data = Dataset::from_bytes(shape, bytes)?;
    let params = TrainingParams {
        steps,
        batch,
        warmup_steps: 0,
        ..TrainingParams::default()
    };
    Ok(Box::new(move || {
        let all = seconds(|| {
            train(&pipeline, &data, &Denoising, &params, None, &())?;
            Ok(())
        })?;
        Ok(all / steps as f64)
    }))
}
