//! Options of `PNDMScheduler`, `EulerDiscreteScheduler`, `EulerAncestralDiscreteScheduler` and `DPMSolverMultistepScheduler`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Read, SchedulerClass};
use crate::DiffusionError;

/// What DPM-Solver solves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DpmAlgorithm {
    /// The probability-flow ODE.
    #[serde(rename = "dpmsolver++")]
    Deterministic,
    /// The reverse SDE.
    #[serde(rename = "sde-dpmsolver++")]
    Stochastic,
}

/// Form of DPM-Solver's second order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// The difference at the middle of the step.
    Midpoint,
    /// Its integral over the step.
    Heun,
}

/// The noise level that the last step goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinalSigma {
    /// None.
    #[serde(rename = "zero")]
    Zero,
    /// That of the first training timestep.
    #[serde(rename = "sigma_min")]
    Least,
}

/// Options of samplers beyond DDPM and DDIM; each reads those that it has.
#[derive(Debug, Clone, PartialEq)]
pub struct SolverOptions {
    /// PNDM: whether it starts without Runge-Kutta steps (`skip_prk_steps`).
    pub skip_prk_steps: bool,
    /// DPM-Solver: its order, 1 to 3 (`solver_order`).
    pub order: usize,
    /// DPM-Solver: what is solved (`algorithm_type`).
    pub algorithm: DpmAlgorithm,
    /// DPM-Solver: form of the second order (`solver_type`).
    pub kind: SolverType,
    /// DPM-Solver: whether short runs end with lower orders (`lower_order_final`).
    pub lower_order_final: bool,
    /// DPM-Solver: whether every run ends with the first order (`euler_at_final`).
    pub euler_at_final: bool,
    /// Whether noise levels are spaced as Karras et al. do (`use_karras_sigmas`).
    pub karras_sigmas: bool,
    /// Euler: least level of that spacing; `None` is that of the last step (`sigma_min`).
    pub sigma_min: Option<f64>,
    /// Euler: largest level of that spacing; `None` is that of the first step (`sigma_max`).
    pub sigma_max: Option<f64>,
    /// Euler and DPM-Solver: where the last step goes (`final_sigmas_type`).
    pub final_sigma: FinalSigma,
}

impl Default for SolverOptions {
    fn default() -> Self {
        Self {
            skip_prk_steps: false,
            order: 2,
            algorithm: DpmAlgorithm::Deterministic,
            kind: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            karras_sigmas: false,
            sigma_min: None,
            sigma_max: None,
            final_sigma: FinalSigma::Zero,
        }
    }
}

/// Options whose one supported value is diffusers' default.
const FIXED: &[(&str, &str)] = &[
    ("interpolation_type", "\"linear\""),
    ("timestep_type", "\"discrete\""),
    ("use_exponential_sigmas", "false"),
    ("use_beta_sigmas", "false"),
    ("use_lu_lambdas", "false"),
    ("use_flow_sigmas", "false"),
    ("use_dynamic_shifting", "false"),
    ("variance_type", "null"),
];
/// Options that do nothing without one of those.
const UNUSED: [&str; 2] = ["flow_shift", "time_shift_type"];

impl SolverOptions {
    /// Reads one option; `false` if it is none of these.
    pub(super) fn read(&mut self, read: &Read<'_>) -> Result<bool, DiffusionError> {
        match read.option {
            "skip_prk_steps" => self.skip_prk_steps = read.of("true or false")?,
            "solver_order" => self.order = read.of("1, 2 or 3")?,
            "algorithm_type" => self.algorithm = read.of("dpmsolver++ or sde-dpmsolver++")?,
            "solver_type" => self.kind = read.of("midpoint or heun")?,
            "lower_order_final" => self.lower_order_final = read.of("true or false")?,
            "euler_at_final" => self.euler_at_final = read.of("true or false")?,
            "use_karras_sigmas" => {
                // null stands for false in early files
                self.karras_sigmas = read.of::<Option<bool>>("true or false")?.unwrap_or(false);
            }
            "sigma_min" => self.sigma_min = read.of("null or a number")?,
            "sigma_max" => self.sigma_max = read.of("null or a number")?,
            "final_sigmas_type" => self.final_sigma = read.of("zero or sigma_min")?,
            // how diffusers' own JSON and strict JSON write minus infinity, which is no bound
            "lambda_min_clipped" => match read.value {
                Value::String(text) if ["-inf", "-Infinity"].contains(&text.as_str()) => {}
                _ => return Err(read.refuse("a bound is not supported, expected \"-inf\"".into())),
            },
            option => {
                let json = read.value.to_string();
                let fixed = FIXED.iter().find(|(name, _)| *name == option);
                return match fixed {
                    None => Ok(UNUSED.contains(&option)),
                    Some((_, only)) if json == *only => Ok(true),
                    Some((_, only)) => {
                        let got = super::brief(read.value);
                        Err(read
                            .refuse(format!("is {got}, which is not supported, expected {only}")))
                    }
                };
            }
        }
        Ok(true)
    }

    /// The options that a class has, as diffusers writes them.
    pub(super) fn to_json(&self, class: SchedulerClass) -> Map<String, Value> {
        let object = match class {
            SchedulerClass::Ddpm | SchedulerClass::Ddim | SchedulerClass::EulerAncestral => {
                Value::Null
            }
            SchedulerClass::Pndm => json!({ "skip_prk_steps": self.skip_prk_steps }),
            SchedulerClass::Euler => json!({
                "final_sigmas_type": self.final_sigma,
                "interpolation_type": "linear",
                "sigma_max": self.sigma_max,
                "sigma_min": self.sigma_min,
                "timestep_type": "discrete",
                "use_beta_sigmas": false,
                "use_exponential_sigmas": false,
                "use_karras_sigmas": self.karras_sigmas,
            }),
            // without lambda_min_clipped: its default, minus infinity, is no JSON
            SchedulerClass::DpmSolver => json!({
                "algorithm_type": self.algorithm,
                "euler_at_final": self.euler_at_final,
                "final_sigmas_type": self.final_sigma,
                "flow_shift": 1.0,
                "lower_order_final": self.lower_order_final,
                "solver_order": self.order,
                "solver_type": self.kind,
                "time_shift_type": "exponential",
                "use_beta_sigmas": false,
                "use_dynamic_shifting": false,
                "use_exponential_sigmas": false,
                "use_flow_sigmas": false,
                "use_karras_sigmas": self.karras_sigmas,
                "use_lu_lambdas": false,
                "variance_type": Value::Null,
            }),
        };
        match object {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    pub(super) fn validate(&self) -> Result<(), (&'static str, String)> {
        let most = match self.algorithm {
            DpmAlgorithm::Deterministic => 3,
            DpmAlgorithm::Stochastic => 2,
        };
        if !(1..=most).contains(&self.order) {
            let reason = format!("is {}, allowed: 1 ..= {most}", self.order);
            return Err(("solver_order", reason));
        }
        let levels = (self.sigma_min, self.sigma_max);
        let positive = |sigma: Option<f64>| sigma.is_none_or(|sigma| sigma > 0.0);
        match levels {
            (Some(least), Some(largest)) if least >= largest => {
                Err(("sigma_min", format!("is {least}, allowed: below sigma_max")))
            }
            (least, largest) if !positive(least) || !positive(largest) => {
                Err(("sigma_min", "this and sigma_max must be above 0".into()))
            }
            _ => Ok(()),
        }
    }
}
