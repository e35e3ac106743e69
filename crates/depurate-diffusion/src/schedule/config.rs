//! `scheduler_config.json` of diffusers, for `DDPMScheduler` and `DDIMScheduler`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{MAX_TRAIN_TIMESTEPS, NoiseSchedule, linspace};
use crate::{DiffusionError, Parameterisation, sampler::Clip};

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
}

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

/// Options of a diffusers scheduler. Names and defaults are diffusers' (`DDPMScheduler`).
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
    /// DDIM: whether the last step goes to `alpha_bar = 1` rather than to that of `t = 0`.
    pub set_alpha_to_one: bool,
    /// Whether the schedule is rescaled to zero terminal SNR.
    pub rescale_betas_zero_snr: bool,
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
        let mut config = Self::default();
        for (option, value) in map {
            let read = Read {
                path,
                option,
                value,
            };
            match option.as_str() {
                "_class_name" => config.class = read.of("DDPMScheduler or DDIMScheduler")?,
                "num_train_timesteps" => config.num_train_timesteps = read.of("a whole number")?,
                "beta_start" => config.beta_start = read.of("a number")?,
                "beta_end" => config.beta_end = read.of("a number")?,
                "beta_schedule" => {
                    config.beta_schedule =
                        read.of("linear, scaled_linear, squaredcos_cap_v2 or sigmoid")?;
                }
                "trained_betas" => config.trained_betas = read.of("null or a list of numbers")?,
                "variance_type" => {
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
                name if name.starts_with('_') => {}
                _ => {
                    return Err(read.refuse(
                        "unknown option; options of DDPMScheduler and DDIMScheduler are read"
                            .into(),
                    ));
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

    /// The object as diffusers writes it for this class.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut object = json!({
            "_class_name": self.class,
            "_diffusers_version": FORMAT_VERSION,
            "num_train_timesteps": self.num_train_timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "trained_betas": self.trained_betas,
            "clip_sample": self.clip_sample,
            "clip_sample_range": self.clip_sample_range,
            "prediction_type": self.prediction_type,
            "thresholding": self.thresholding,
            "dynamic_thresholding_ratio": self.dynamic_thresholding_ratio,
            "sample_max_value": self.sample_max_value,
            "timestep_spacing": self.timestep_spacing,
            "steps_offset": self.steps_offset,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
        });
        match self.class {
            SchedulerClass::Ddpm => object["variance_type"] = json!(self.variance_type),
            SchedulerClass::Ddim => object["set_alpha_to_one"] = json!(self.set_alpha_to_one),
        }
        match object {
            Value::Object(map) => map,
            _ => Map::new(),
        }
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
        let total = self.num_train_timesteps;
        if !(1..=total).contains(&n_steps) {
            return Err(DiffusionError::Argument {
                what: "number of sampling steps",
                got: n_steps.to_string(),
                allowed: format!("1 ..= {total}"),
            });
        }
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

    fn validate(&self) -> Result<(), (&'static str, String)> {
        let total = self.num_train_timesteps;
        let check = |ok: bool, option: &'static str, got: String, allowed: &str| {
            if ok {
                Ok(())
            } else {
                Err((option, format!("is {got}, allowed: {allowed}")))
            }
        };
        let open = |beta: f64| beta > 0.0 && beta < 1.0;
        check(
            (1..=MAX_TRAIN_TIMESTEPS).contains(&total),
            "num_train_timesteps",
            total.to_string(),
            &format!("1 ..= {MAX_TRAIN_TIMESTEPS}"),
        )?;
        check(
            open(self.beta_start),
            "beta_start",
            self.beta_start.to_string(),
            "above 0, below 1",
        )?;
        check(
            open(self.beta_end),
            "beta_end",
            self.beta_end.to_string(),
            "above 0, below 1",
        )?;
        if let Some(betas) = &self.trained_betas {
            check(
                betas.len() == total,
                "trained_betas",
                format!("{} values", betas.len()),
                &format!("{total} values, one per training timestep"),
            )?;
        }
        check(
            self.clip_sample_range > 0.0,
            "clip_sample_range",
            self.clip_sample_range.to_string(),
            "above 0",
        )?;
        let ratio = self.dynamic_thresholding_ratio;
        check(
            ratio > 0.0 && ratio <= 1.0,
            "dynamic_thresholding_ratio",
            ratio.to_string(),
            "above 0, at most 1",
        )?;
        check(
            self.sample_max_value >= 1.0,
            "sample_max_value",
            self.sample_max_value.to_string(),
            "1 or more",
        )?;
        check(
            self.steps_offset < total,
            "steps_offset",
            self.steps_offset.to_string(),
            "below num_train_timesteps",
        )?;
        let family = if self.trained_betas.is_some() {
            "trained_betas"
        } else {
            "beta_schedule"
        };
        self.schedule()
            .map_err(|error| (family, error.to_string()))?;
        Ok(())
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
