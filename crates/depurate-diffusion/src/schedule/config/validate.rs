//! Which options are in range.

use super::SchedulerConfig;
use crate::schedule::MAX_TRAIN_TIMESTEPS;

impl SchedulerConfig {
    pub(super) fn validate(&self) -> Result<(), (&'static str, String)> {
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
        self.solver.validate()?;
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
