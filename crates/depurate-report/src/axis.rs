//! Axes of plots: from data to pixels, with ticks at round numbers.

use serde::Serialize;

use crate::number::{number, trim_zeros};

/// A labelled position on an axis.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Tick {
    /// Position in pixels.
    pub at: f64,
    /// The number there.
    pub label: String,
}

/// A map from data to pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    /// The linear scale that shows all finite `values` between the pixels `from` and `to`, with
    /// `margin` (a share of the range) at both ends. `None` if there is nothing to show.
    pub fn linear(
        values: impl Iterator<Item = f64>,
        margin: f64,
        from: f64,
        to: f64,
    ) -> Option<Self> {
        Self::new(values, margin, from, to, false)
    }

    /// A logarithmic scale if all finite values are positive and span more than a factor of 50,
    /// otherwise a linear one.
    pub fn log_if_wide(
        values: impl Iterator<Item = f64> + Clone,
        from: f64,
        to: f64,
    ) -> Option<Self> {
        let (low, high) = range(values.clone())?;
        let log = low > 0.0 && high > 50.0 * low;
        Self::new(values, 0.04, from, to, log)
    }

    fn new(
        values: impl Iterator<Item = f64>,
        margin: f64,
        from: f64,
        to: f64,
        log: bool,
    ) -> Option<Self> {
        let (low, high) = range(values)?;
        let (low, high) = if log {
            (low.log10(), high.log10())
        } else {
            (low, high)
        };
        // equal values still need a range around them
        let span = if high > low {
            high - low
        } else {
            low.abs().max(1.0)
        };
        let pad = if high > low {
            margin * span
        } else {
            0.5 * span
        };
        let scale = Self {
            low: low - pad,
            high: high + pad,
            from,
            to,
            log,
        };
        (scale.high - scale.low).is_finite().then_some(scale)
    }

    /// The pixel of a value, held inside the axis.
    pub fn at(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        round(self.from + share * (self.to - self.from))
    }

    /// Does a linear axis reach this value?
    pub fn shows(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// The ends of the axis, in data units (logarithms on a logarithmic axis).
    pub fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// Ticks at round numbers, about `wanted` of them.
    pub fn ticks(&self, wanted: usize) -> Vec<Tick> {
        if self.log {
            return self.decades(wanted);
        }
        let rough = (self.high - self.low) / wanted.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|m| m * power)
            .into_iter()
            .find(|s| *s >= rough)
            .unwrap_or(10.0 * power);
        let first = (self.low / step).ceil();
        // a range that is tiny beside its offset has no distinct round numbers
        if !(step > 0.0 && step.is_finite() && first.abs() < 1e9) {
            return Vec::new();
        }
        let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
        (0..=(2 * wanted))
            .map(|i| (first + i as f64) * step)
            .take_while(|v| *v <= self.high)
            .map(|v| Tick {
                at: self.at(v),
                label: tick_label(v, decimals),
            })
            .collect()
    }

    /// Ticks at powers of ten, or at 1, 2 and 5 times them where few powers are in range.
    fn decades(&self, wanted: usize) -> Vec<Tick> {
        let (first, last) = (self.low.floor() as i32, self.high.ceil() as i32);
        let every = ((last - first) / wanted.max(1) as i32).max(1);
        let multiples: &[f64] = if last - first <= 2 {
            &[1.0, 2.0, 5.0]
        } else {
            &[1.0]
        };
        let mut ticks = Vec::new();
        for power in (first..=last).step_by(every as usize) {
            for m in multiples {
                let value = m * 10f64.powi(power);
                if self.shows(value.log10()) {
                    ticks.push(Tick {
                        at: self.at(value),
                        label: number(value),
                    });
                }
            }
        }
        ticks
    }
}

fn tick_label(value: f64, decimals: usize) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if !(1e-4..1e6).contains(&value.abs()) {
        format!("{value:.1e}")
    } else {
        trim_zeros(format!("{value:.decimals$}"))
    }
}

/// The least and the greatest finite value.
pub(crate) fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|v| v.is_finite()).fold(None, |range, v| {
        let (low, high) = range.unwrap_or((v, v));
        Some((v.min(low), v.max(high)))
    })
}

/// A tenth of a pixel is enough, and keeps the file small.
pub(crate) fn round(pixels: f64) -> f64 {
    (pixels * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale) -> Vec<String> {
        scale.ticks(5).into_iter().map(|t| t.label).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::linear([0.0, 1.0].into_iter(), 0.0, 0.0, 100.0).expect("a range");
        assert_eq!(labels(scale), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(scale.at(0.25), 25.0);
        assert_eq!(scale.at(9.0), 100.0);
        let wide = Scale::log_if_wide([1.0, 5000.0].into_iter(), 0.0, 100.0).expect("a range");
        assert_eq!(labels(wide), ["1", "10", "100", "1000"]);
    }

    #[test]
    fn hopeless_data_has_no_scale_or_no_ticks() {
        let none = [f64::NAN, f64::INFINITY];
        assert!(Scale::linear(none.into_iter(), 0.1, 0.0, 1.0).is_none());
        let too_wide = [-f64::MAX, f64::MAX];
        assert!(Scale::linear(too_wide.into_iter(), 0.1, 0.0, 1.0).is_none());
        let offset = [1e15, 1e15 + 1.0];
        let scale = Scale::linear(offset.into_iter(), 0.1, 0.0, 1.0).expect("a range");
        assert!(scale.ticks(5).is_empty());
        let one = Scale::linear([3.0].into_iter(), 0.1, 0.0, 10.0).expect("a range");
        assert_eq!(one.at(3.0), 5.0);
    }
}
