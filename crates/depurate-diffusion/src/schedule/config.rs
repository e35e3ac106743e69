//! `scheduler_config.json` of diffusers, for the schedulers that [`SchedulerClass`] lists.

mod solver;
mod validate;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{NoiseSchedule, linspace};
use crate::{DiffusionError, Parameterisation, sampler::Clip};

pub use solver::{DpmAlgorithm, FinalSigma, SolverOptions, SolverType};

/// Version of the diffusers format that [`SchedulerConfig::to_json`] follows.
const FORMAT_VERSION: &str = "0.42.1";

/// The sampler that a checkpoint names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchedulerClass {
    /// Ancestral sampling, stochastic.
    #[serde(rename = "DDPMScheduler")]
    Ddpm,
    /// Deterministic unless `eta` is above 0.
    #[serde(rename = "DDIMScheduler")]
    Ddim,
    /// Pseudo numerical methods, Stable Diffusion 1's own.
    #[serde(rename = "PNDMScheduler")]
    Pndm,
    /// Euler's method over noise levels.
    #[serde(rename = "EulerDiscreteScheduler")]
    Euler,
    /// Euler's method with noise at every step.
    #[serde(rename = "EulerAncestralDiscreteScheduler")]
    EulerAncestral,
    /// DPM-Solver++, multistep.
    #[serde(rename = "DPMSolverMultistepScheduler")]
    DpmSolver,
}

/// What an unknown class could have been.
const CLASSES: &str = "DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, \
EulerAncestralDiscreteScheduler or DPMSolverMultistepScheduler";

/// Shape of the betas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Equally spaced.
    Linear,
    /// Square roots equally spaced.
    ScaledLinear,
    /// Cosine.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
    /// Along a sigmoid.
    Sigmoid,
}

/// Variance of an ancestral step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// The posterior variance for a point-like data distribution (the smaller choice of DDPM).
    FixedSmall,
    /// As `FixedSmall`, computed through its logarithm in diffusers; the same number here.
    FixedSmallLog,
    /// `beta_t` (the larger choice of DDPM).
    FixedLarge,
}

/// Which training timesteps a run with fewer steps visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of `T / n` from 0, plus `steps_offset`.
    Leading,
    /// Equally spaced with both ends.
    Linspace,
    /// From `T - 1` down in steps of `T / n`.
    Trailing,
}

/// Options of a diffusers scheduler. Names and defaults are diffusers' (the default is that of `DDPMScheduler`).
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// `_class_name`.
    pub class: SchedulerClass,
    /// Number of training timesteps `T`.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// Shape of the betas in between.
    pub beta_schedule: BetaSchedule,
    /// The betas themselves, which replace the three options above; as many as `num_train_timesteps`.
    pub trained_betas: Option<Vec<f64>>,
    /// Variance of a DDPM step.
    pub variance_type: VarianceType,
    /// Whether the predicted clean sample is cut to `± clip_sample_range` at every step.
    pub clip_sample: bool,
    /// See `clip_sample`.
    pub clip_sample_range: f64,
    /// What the network outputs.
    pub prediction_type: Parameterisation,
    /// Whether the predicted clean sample is cut at a quantile of itself (Imagen); wins over `clip_sample`.
    pub thresholding: bool,
    /// The quantile.
    pub dynamic_thresholding_ratio: f64,
    /// Upper bound of the cut.
    pub sample_max_value: f64,
    /// Which timesteps a shorter run visits.
    pub timestep_spacing: TimestepSpacing,
    /// Added to every timestep of `Leading`.
    pub steps_offset: usize,
    /// DDIM and PNDM: whether the last step goes to `alpha_bar = 1` rather than to that of `t = 0`.
    pub set_alpha_to_one: bool,
    /// Whether the schedule is rescaled to zero terminal SNR.
    pub rescale_betas_zero_snr: bool,
    /// Options of PNDM, Euler and DPM-Solver++.
    pub solver: SolverOptions,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class: SchedulerClass::Ddpm,
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            variance_type: VarianceType::FixedSmall,
            clip_sample: true,
            clip_sample_range: 1.0,
            prediction_type: Parameterisation::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            set_alpha_to_one: true,
            rescale_betas_zero_snr: false,
            solver: SolverOptions::default(),
        }
    }
}

impl SchedulerConfig {
    /// Reads the object of a `scheduler_config.json`; `path` only serves messages. Absent options have
    /// diffusers' defaults; names that start with `_` carry no option, except `_class_name`.
    ///
    /// # Errors
    /// [`DiffusionError::Config`] that names the option: unknown, of the wrong type, unsupported or out of range.
    pub fn from_json(map: &Map<String, Value>, path: &Path) -> Result<Self, DiffusionError> {
        let read = |option, value| Read {
            path,
            option,
            value,
        };
        let mut config = match map.get_key_value("_class_name") {
            Some((option, value)) => Self::of_class(read(option, value).of(CLASSES)?),
            None => Self::default(),
        };
        for (option, value) in map {
            let read = read(option, value);
            match option.as_str() {
                "num_train_timesteps" => config.num_train_timesteps = read.of("a whole number")?,
                "beta_start" => config.beta_start = read.of("a number")?,
                "beta_end" => config.beta_end = read.of("a number")?,
                "beta_schedule" => {
                    config.beta_schedule =
                        read.of("linear, scaled_linear, squaredcos_cap_v2 or sigmoid")?;
                }
                "trained_betas" => config.trained_betas = read.of("null or a list of numbers")?,
                "variance_type" if !value.is_null() => {
                    config.variance_type =
                        read.of("fixed_small, fixed_small_log or fixed_large")?;
                }
                "clip_sample" => config.clip_sample = read.of("true or false")?,
                "clip_sample_range" => config.clip_sample_range = read.of("a number")?,
                "prediction_type" => {
                    config.prediction_type = read.of("epsilon, v_prediction or sample")?
                }
                // written before version 0.11; `prediction_type` took its place
                "predict_epsilon" if !map.contains_key("prediction_type") => {
                    let epsilon: bool = read.of("true or false")?;
                    config.prediction_type = if epsilon {
                        Parameterisation::Epsilon
                    } else {
                        Parameterisation::Sample
                    };
                }
                "thresholding" => config.thresholding = read.of("true or false")?,
                "dynamic_thresholding_ratio" => {
                    config.dynamic_thresholding_ratio = read.of("a number")?
                }
                "sample_max_value" => config.sample_max_value = read.of("a number")?,
                "timestep_spacing" => {
                    config.timestep_spacing = read.of("leading, linspace or trailing")?
                }
                "steps_offset" => config.steps_offset = read.of("a whole number")?,
                "set_alpha_to_one" => config.set_alpha_to_one = read.of("true or false")?,
                "rescale_betas_zero_snr" => {
                    config.rescale_betas_zero_snr = read.of("true or false")?
                }
                name if name.starts_with('_') || config.solver.read(&read)? => {}
                _ => {
                    return Err(read.refuse(format!("unknown option; those of {CLASSES} are read")));
                }
            }
        }
        config
            .validate()
            .map_err(|(option, reason)| DiffusionError::Config {
                path: path.to_owned(),
                option: option.into(),
                reason,
            })?;
        Ok(config)
    }

    /// Reads the options of another class's file as `class` understands them, as diffusers does when a sampler is exchanged:
    /// what the file says counts, and the rest are the defaults of `class`.
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub fn from_json_as(
        class: SchedulerClass,
        map: &Map<String, Value>,
        path: &Path,
    ) -> Result<Self, DiffusionError> {
        let mut map = map.clone();
        map.insert("_class_name".into(), json!(class));
        Self::from_json(&map, path)
    }

    /// As diffusers' `StableDiffusionPipeline` takes every scheduler, whatever its file says: `steps_offset` is 1 and predicted
    /// samples, which are latents, are not cut to a range.
    pub fn for_latents(self) -> Self {
        Self {
            steps_offset: 1,
            clip_sample: false,
            ..self
        }
    }

    /// The defaults of a class. Those that the class does not have do nothing: no clipping, no rescaling.
    fn of_class(class: SchedulerClass) -> Self {
        use SchedulerClass as C;
        let default = Self {
            class,
            ..Self::default()
        };
        match class {
            C::Ddpm | C::Ddim => default,
            C::Pndm => Self {
                clip_sample: false,
                set_alpha_to_one: false,
                ..default
            },
            C::Euler | C::EulerAncestral | C::DpmSolver => Self {
                clip_sample: false,
                timestep_spacing: TimestepSpacing::Linspace,
                ..default
            },
        }
    }

    /// The object as diffusers writes it for this class.
    pub fn to_json(&self) -> Map<String, Value> {
        use SchedulerClass as C;
        let mut object = Map::new();
        let mut put = |option: &str, value: Value| object.insert(option.to_owned(), value);
        put("_class_name", json!(self.class));
        put("_diffusers_version", json!(FORMAT_VERSION));
        put("num_train_timesteps", json!(self.num_train_timesteps));
        put("beta_start", json!(self.beta_start));
        put("beta_end", json!(self.beta_end));
        put("beta_schedule", json!(self.beta_schedule));
        put("trained_betas", json!(self.trained_betas));
        put("prediction_type", json!(self.prediction_type));
        put("timestep_spacing", json!(self.timestep_spacing));
        put("steps_offset", json!(self.steps_offset));
        if matches!(self.class, C::Ddpm | C::Ddim) {
            put("clip_sample", json!(self.clip_sample));
            put("clip_sample_range", json!(self.clip_sample_range));
        }
        if matches!(self.class, C::Ddpm | C::Ddim | C::DpmSolver) {
            put("thresholding", json!(self.thresholding));
            let ratio = self.dynamic_thresholding_ratio;
            put("dynamic_thresholding_ratio", json!(ratio));
            put("sample_max_value", json!(self.sample_max_value));
        }
        if self.class != C::Pndm {
            put("rescale_betas_zero_snr", json!(self.rescale_betas_zero_snr));
        }
        if self.class == C::Ddpm {
            put("variance_type", json!(self.variance_type));
        }
        if matches!(self.class, C::Ddim | C::Pndm) {
            put("set_alpha_to_one", json!(self.set_alpha_to_one));
        }
        object.extend(self.solver.to_json(self.class));
        object
    }

    /// The noise schedule that these options describe.
    ///
    /// # Errors
    /// When the options are out of range (only possible for a value not read by [`Self::from_json`]).
    pub fn schedule(&self) -> Result<NoiseSchedule, DiffusionError> {
        let (n, start, end) = (self.num_train_timesteps, self.beta_start, self.beta_end);
        let schedule = match (&self.trained_betas, self.beta_schedule) {
            (Some(betas), _) => NoiseSchedule::from_betas(betas.clone()),
            (None, BetaSchedule::Linear) => NoiseSchedule::linear(n, start, end),
            (None, BetaSchedule::ScaledLinear) => NoiseSchedule::scaled_linear(n, start, end),
            (None, BetaSchedule::SquaredCosine) => NoiseSchedule::squared_cosine(n),
            (None, BetaSchedule::Sigmoid) => NoiseSchedule::sigmoid(n, start, end),
        }?;
        if self.rescale_betas_zero_snr {
            schedule.rescaled_to_zero_snr()
        } else {
            Ok(schedule)
        }
    }

    /// What is done to the predicted clean sample at every step.
    pub fn clip(&self) -> Clip {
        if self.thresholding {
            Clip::Threshold {
                ratio: self.dynamic_thresholding_ratio as f32,
                max: self.sample_max_value as f32,
            }
        } else if self.clip_sample {
            Clip::Range(self.clip_sample_range as f32)
        } else {
            Clip::None
        }
    }

    /// The training timesteps that a run of `n_steps` visits, from noisy to clean.
    ///
    /// # Errors
    /// When `n_steps` is not in `1 ..= T`, or `steps_offset` moves a step past `T - 1`.
    pub fn timesteps(&self, n_steps: usize) -> Result<Vec<usize>, DiffusionError> {
        self.check_steps(n_steps)?;
        let total = self.num_train_timesteps;
        let timesteps: Vec<usize> = match self.timestep_spacing {
            TimestepSpacing::Leading => {
                let stride = total / n_steps;
                (0..n_steps)
                    .rev()
                    .map(|i| i * stride + self.steps_offset)
                    .collect()
            }
            TimestepSpacing::Linspace => linspace(0.0, (total - 1) as f64, n_steps)
                .into_iter()
                .rev()
                .map(|t| t.round_ties_even() as usize)
                .collect(),
            // diffusers adds a step -1 for the few n where T / (T / n) rounds above n; never more than n here
            TimestepSpacing::Trailing => {
                let stride = total as f64 / n_steps as f64;
                (0..n_steps)
                    .map(|i| (total as f64 - i as f64 * stride).round_ties_even() as usize - 1)
                    .collect()
            }
        };
        match timesteps.first() {
            Some(&t) if t >= total => Err(DiffusionError::Argument {
                what: "first timestep with this steps_offset",
                got: t.to_string(),
                allowed: format!("0 ..= {}; use fewer steps or a smaller offset", total - 1),
            }),
            _ => Ok(timesteps),
        }
    }

    /// Refuses a number of steps that is not in `1 ..= T`.
    pub(crate) fn check_steps(&self, n_steps: usize) -> Result<(), DiffusionError> {
        let total = self.num_train_timesteps;
        if (1..=total).contains(&n_steps) {
            return Ok(());
        }
        Err(DiffusionError::Argument {
            what: "number of sampling steps",
            got: n_steps.to_string(),
            allowed: format!("1 ..= {total}"),
        })
    }
}

/// One option being read, with what a message needs.
struct Read<'a> {
    path: &'a Path,
    option: &'a str,
    value: &'a Value,
}

impl Read<'_> {
    fn of<T: for<'de> Deserialize<'de>>(&self, expected: &str) -> Result<T, DiffusionError> {
        T::deserialize(self.value)
            .map_err(|_| self.refuse(format!("is {}, expected {expected}", brief(self.value))))
    }

    fn refuse(&self, reason: String) -> DiffusionError {
        DiffusionError::Config {
            path: self.path.to_owned(),
            option: self.option.to_owned(),
            reason,
        }
    }
}

/// A value as JSON, cut so that a hostile file cannot flood a message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        None => text,
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}
