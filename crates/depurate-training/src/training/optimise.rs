//! The loop that every training shares: a loss, its gradients, one step of the optimiser, the average.
//!
//! What is trained is any module, or a tuple of modules; what a step costs is the caller's. The loss of a step has to depend on
//! the module and the step's number alone, so that a resumed run continues as if it had never been stopped.

use std::time::{Duration, Instant};

use burn::{module::Module, tensor::Tensor};
use depurate_diffusion::ops;

use super::{AdamParams, Enough, Monitor, StepReport, TrainingParams};
use crate::{
    TrainingError,
    checkpointing::{State, StateFile},
    ema::Ema,
    optimizer::AdamW,
    parameters::{self, Flat},
};

/// How a run goes, whatever it is that is trained.
pub struct Optimisation<'a> {
    /// Everything that decides how the run goes, but the data's content: a state of another description is refused.
    pub run: String,
    /// Optimiser steps.
    pub steps: usize,
    /// Samples a step, for the throughput.
    pub batch: usize,
    /// Learning rate of a step, counted from 0.
    pub learning_rate: &'a dyn Fn(usize) -> f64,
    /// Constants of the optimiser.
    pub adam: AdamParams,
    /// The norm of all gradients together is cut to this; infinity leaves them as they are.
    pub max_grad_norm: f64,
    /// Limit of the decay of the parameters' average, in [0, 1); 0 gives the parameters of the last step.
    pub ema_decay: f64,
    /// Steps between two resumable states.
    pub checkpoint_every: usize,
}

impl std::fmt::Debug for Optimisation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Optimisation")
            .field("run", &self.run)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

/// The outcome of [`optimise`].
#[derive(Debug, Clone)]
pub struct Optimised<M> {
    /// The module with the averaged parameters.
    pub module: M,
    /// Loss of every step since the run was started or resumed.
    pub losses: Vec<f32>,
    /// Time spent in this process.
    pub elapsed: Duration,
    /// Throughput in this process.
    pub samples_per_second: f64,
    /// Steps done, earlier processes included.
    pub steps: usize,
}

/// Minimises `loss_of(module, step)`, a tensor `[1]` on an autodiff device, over all parameters of `module`. With a `state` file
/// a resumable state is written there now and then, and a run that finds one continues it; the file is left in place at the end.
///
/// # Errors
/// When the module is not on an autodiff device, a loss or a gradient is not finite, a file cannot be written, the state is
/// another run's, the monitor stops the run, or `loss_of` fails.
pub fn optimise<M: Module>(
    module: M,
    how: &Optimisation<'_>,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
    loss_of: &mut dyn FnMut(&M, usize) -> Result<Tensor<1>, TrainingError>,
) -> Result<Optimised<M>, TrainingError> {
    let never = &mut |_: &M, _| Ok(false);
    optimise_until(module, how, state, monitor, loss_of, never)
}

/// As [`optimise`], and asks `enough` every [`Optimisation::checkpoint_every`] steps but the last, after the state is kept, whether
/// to end the run.
///
/// # Errors
/// As [`optimise`], and those of `loss_of` and `enough` as they are.
pub fn optimise_until<M: Module, E: From<TrainingError>>(
    module: M,
    how: &Optimisation<'_>,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
    loss_of: &mut dyn FnMut(&M, usize) -> Result<Tensor<1>, E>,
    enough: Enough<'_, M, E>,
) -> Result<Optimised<M>, E> {
    if let Some(device) = module.devices().iter().find(|device| !device.is_autodiff()) {
        return Err(TrainingError::Params {
            what: "device",
            got: format!("{device:?}"),
            allowed: "one with autodiff",
        }
        .into());
    }
    let mut module = module;
    let mut values = parameters::values(&module);
    let mut ema = Ema::new(how.ema_decay, values.clone());
    let mut optimizer = AdamW::new(how.adam);
    let mut step = 0;
    if let Some(State {
        step: done,
        values: stored,
        ema: average,
        first,
        second,
    }) = state
        .map(|file| file.load(&how.run, &values))
        .transpose()?
        .flatten()
    {
        step = done;
        values = stored;
        module = parameters::replaced(module, &values);
        ema.values = average;
        ema.updates = done;
        optimizer.step = done;
        (optimizer.first, optimizer.second) = (first, second);
        tracing::info!(step, "resumed");
    }
    let save = |step: usize, values: &Flat, ema: &Ema, optimizer: &AdamW| match state {
        Some(file) => file.save(
            &how.run,
            step,
            values,
            &ema.values,
            &optimizer.first,
            &optimizer.second,
        ),
        None => Ok(()),
    };

    let (start, first_step) = (Instant::now(), step);
    let throughput = |step: usize| {
        let samples = ((step - first_step) * how.batch) as f64;
        samples / start.elapsed().as_secs_f64().max(1e-9)
    };
    let mut losses = Vec::with_capacity(how.steps.saturating_sub(step).min(1 << 20));
    while step < how.steps {
        let loss = loss_of(&module, step)?;
        let loss_value = loss.clone().inner().into_scalar::<f32>();
        if !loss_value.is_finite() {
            return Err(TrainingError::Diverged {
                step,
                loss: loss_value,
            }
            .into());
        }
        let gradients = parameters::gradients(&module, loss.backward());
        let grad_norm = global_norm(&gradients);
        if !grad_norm.is_finite() {
            return Err(TrainingError::Diverged {
                step,
                loss: f32::NAN,
            }
            .into());
        }
        let scale = (how.max_grad_norm / grad_norm).min(1.0);
        let learning_rate = (how.learning_rate)(step);
        optimizer.update(&mut values, gradients, scale, learning_rate);
        module = parameters::replaced(module, &values);
        ema.update(&values);
        losses.push(loss_value);
        step += 1;

        monitor.step(&StepReport {
            step,
            steps: how.steps,
            loss: loss_value,
            grad_norm,
            learning_rate,
            samples_per_second: throughput(step),
        });
        if monitor.cancelled() && step < how.steps {
            save(step, &values, &ema, &optimizer)?;
            return Err(TrainingError::Cancelled { step }.into());
        }
        if step.is_multiple_of(how.checkpoint_every) || step == how.steps {
            save(step, &values, &ema, &optimizer)?;
            let average = || parameters::replaced(module.clone(), &ema.values);
            if step < how.steps && enough(&average(), step)? {
                break;
            }
        }
    }
    Ok(Optimised {
        module: parameters::replaced(module, &ema.values),
        losses,
        elapsed: start.elapsed(),
        samples_per_second: throughput(step),
        steps: step,
    })
}

impl TrainingParams {
    /// What these parameters say of a run that `run` describes; `learning_rate` is [`Self::learning_rate_at`], as a function.
    pub fn optimisation<'a>(
        &self,
        run: String,
        learning_rate: &'a dyn Fn(usize) -> f64,
    ) -> Optimisation<'a> {
        Optimisation {
            run,
            steps: self.steps,
            batch: self.batch,
            learning_rate,
            adam: self.adam,
            max_grad_norm: self.max_grad_norm,
            ema_decay: self.ema_decay,
            checkpoint_every: self.checkpoint_every,
        }
    }
}

/// The root of the sum of the squares of all gradients.
fn global_norm(gradients: &Flat) -> f64 {
    let squares: Vec<Tensor<1>> = gradients
        .values()
        .map(|gradient| ops::sum_of_squares(gradient.clone()))
        .collect();
    if squares.is_empty() {
        return 0.0;
    }
    f64::from(Tensor::cat(squares, 0).sum().into_scalar::<f32>()).sqrt()
}
