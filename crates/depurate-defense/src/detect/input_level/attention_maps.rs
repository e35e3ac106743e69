//! The attention that a prompt's tokens draw: one map a token and call of the UNet.
//!
//! | name | what | shape |
//! |---|---|---|
//! | `M_t` | maps of one prompt at call `t`, [`CallMaps`] | `[L, h, w]` |
//! | `L` | tokens: BOS, content, the first EOS; padding is dropped | |
//!
//! Each map is the mean over layers and heads of a softmax over all tokens of the text encoder, so values lie in `[0, 1]`,
//! and those of one pixel add up to at most 1.

use crate::DefenseError;

/// BOS, one token of content, EOS: with fewer there is nothing to compare EOS with.
pub const LEAST_TOKENS: usize = 3;

/// Lanes of a sum of squares: independent sums that the compiler keeps in one register each.
const LANES: usize = 8;

/// Checks that a prompt can be screened, before any call is made. `tokens` counts BOS and EOS and is not truncated;
/// `limit` is the text encoder's number of positions (77 for CLIP).
///
/// # Errors
/// When the prompt has no content, or is longer than the text encoder reads: what is cut off is not screened.
pub fn check_length(tokens: usize, limit: usize) -> Result<(), DefenseError> {
    if tokens < LEAST_TOKENS {
        return Err(DefenseError::ShortPrompt { tokens });
    }
    if tokens > limit {
        return Err(DefenseError::LongPrompt { tokens, limit });
    }
    Ok(())
}

/// The maps of one prompt at one call.
#[derive(Debug, Clone, PartialEq)]
pub struct CallMaps {
    tokens: usize,
    size: (usize, usize),
    values: Vec<f32>,
}

impl CallMaps {
    /// From `values [L, h, w]`, where `size` is `(h, w)`.
    ///
    /// # Errors
    /// When there are fewer than [`LEAST_TOKENS`] tokens, the number of values is another, or one is not finite.
    pub fn new(
        tokens: usize,
        size: (usize, usize),
        values: Vec<f32>,
    ) -> Result<Self, DefenseError> {
        if tokens < LEAST_TOKENS {
            return Err(DefenseError::ShortPrompt { tokens });
        }
        let pixels = size.0.checked_mul(size.1).filter(|&pixels| pixels > 0);
        let expected = pixels.and_then(|pixels| pixels.checked_mul(tokens));
        let (Some(pixels), Some(expected)) = (pixels, expected) else {
            return Err(DefenseError::MapShape {
                expected: "at least one pixel".into(),
                got: format!("{tokens} x {} x {}", size.0, size.1),
            });
        };
        if values.len() != expected {
            return Err(DefenseError::MapShape {
                expected: format!("{tokens} x {} x {} = {expected} values", size.0, size.1),
                got: format!("{} values", values.len()),
            });
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(DefenseError::NonFiniteMap { token: at / pixels });
        }
        Ok(Self {
            tokens,
            size,
            values,
        })
    }

    /// `L`, at least [`LEAST_TOKENS`].
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Rows and columns of a map.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// The map of every token, BOS first and EOS last, each row by row.
    pub fn maps(&self) -> impl DoubleEndedIterator<Item = &[f32]> + ExactSizeIterator {
        self.values.chunks_exact(self.size.0 * self.size.1)
    }

    /// Whether all tokens but BOS draw the same attention, so that there is nothing to compare.
    pub fn are_identical(&self) -> bool {
        let mut nodes = self.maps().skip(1);
        nodes
            .next()
            .is_none_or(|first| nodes.all(|map| map == first))
    }

    fn fits(&self, other: &Self) -> Result<(), DefenseError> {
        if (self.tokens, self.size) == (other.tokens, other.size) {
            return Ok(());
        }
        let shape = |maps: &Self| format!("{} x {} x {}", maps.tokens, maps.size.0, maps.size.1);
        Err(DefenseError::MapShape {
            expected: format!("{} as at the first call", shape(other)),
            got: shape(self),
        })
    }
}

/// Gives the maps of one prompt, call by call.
pub trait MapSource {
    /// The maps of the first `calls` calls, at least as many as asked for; calls that were not made yet are made now.
    ///
    /// # Errors
    /// When there are fewer calls, or one fails.
    fn first(&mut self, calls: usize) -> Result<&[CallMaps], DefenseError>;
}

/// The maps of call `t`, from 0.
pub(crate) fn at(maps: &mut dyn MapSource, t: usize) -> Result<&CallMaps, DefenseError> {
    let made = maps.first(t.saturating_add(1))?;
    let calls = made.len();
    made.get(t)
        .ok_or(DefenseError::NoSuchCall { call: t, calls })
}

/// The maps of one prompt at all its calls, recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenMaps {
    calls: Vec<CallMaps>,
}

impl TokenMaps {
    /// From the maps of each call, in order.
    ///
    /// # Errors
    /// When there is no call, or calls differ in tokens or size.
    pub fn new(calls: Vec<CallMaps>) -> Result<Self, DefenseError> {
        let Some(first) = calls.first() else {
            return Err(DefenseError::NoSuchCall { call: 0, calls: 0 });
        };
        calls.iter().try_for_each(|maps| maps.fits(first))?;
        Ok(Self { calls })
    }

    /// From `values [calls, L, h, w]`, where `size` is `(h, w)`.
    ///
    /// # Errors
    /// As [`CallMaps::new`] and [`Self::new`].
    pub fn from_values(
        tokens: usize,
        size: (usize, usize),
        values: &[f32],
    ) -> Result<Self, DefenseError> {
        let one = size
            .0
            .checked_mul(size.1)
            .and_then(|pixels| pixels.checked_mul(tokens))
            .unwrap_or(0);
        // a remainder, or an overflow, becomes a call of the wrong length, which is refused by name
        let calls = values
            .chunks(one.max(1))
            .map(|call| CallMaps::new(tokens, size, call.to_vec()));
        Self::new(calls.collect::<Result<_, _>>()?)
    }

    /// The maps of every call.
    pub fn calls(&self) -> &[CallMaps] {
        &self.calls
    }
}

impl MapSource for TokenMaps {
    fn first(&mut self, calls: usize) -> Result<&[CallMaps], DefenseError> {
        self.calls.get(..calls).ok_or(DefenseError::NoSuchCall {
            call: calls.saturating_sub(1),
            calls: self.calls.len(),
        })
    }
}

/// Makes a call of the UNet when its maps are first asked for, and keeps them for the next detector.
pub struct LazyMaps<F> {
    next: F,
    made: Vec<CallMaps>,
}

impl<F: FnMut(usize) -> Result<CallMaps, DefenseError>> LazyMaps<F> {
    /// `next` is given the index of the call to make, 0, 1, … in order, and returns its maps. A sampler that has no such call
    /// answers with [`DefenseError::NoSuchCall`].
    pub fn new(next: F) -> Self {
        Self {
            next,
            made: Vec::new(),
        }
    }

    /// How many calls were made.
    pub fn calls_made(&self) -> usize {
        self.made.len()
    }

    /// What was made so far.
    pub fn into_maps(self) -> Vec<CallMaps> {
        self.made
    }
}

impl<F: FnMut(usize) -> Result<CallMaps, DefenseError>> MapSource for LazyMaps<F> {
    fn first(&mut self, calls: usize) -> Result<&[CallMaps], DefenseError> {
        while self.made.len() < calls {
            let maps = (self.next)(self.made.len())?;
            if let Some(first) = self.made.first() {
                maps.fits(first)?;
            }
            self.made.push(maps);
        }
        Ok(&self.made)
    }
}

/// `|| a - b ||_F` of two maps, in double precision.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    root_sum_of_squares(a, b, |a, b| f64::from(a) - f64::from(b))
}

/// `|| a ||_F` of a map, in double precision.
pub(crate) fn norm(a: &[f32]) -> f64 {
    root_sum_of_squares(a, a, |a, _| f64::from(a))
}

fn root_sum_of_squares(a: &[f32], b: &[f32], value: impl Fn(f32, f32) -> f64) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            let value = value(a, b);
            *sum += value * value;
        }
    }
    let rest: f64 = a_rest
        .iter()
        .zip(b_rest)
        .map(|(&a, &b)| value(a, b).powi(2))
        .sum();
    (sums.iter().sum::<f64>() + rest).sqrt()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn maps(tokens: usize) -> CallMaps {
        CallMaps::new(tokens, (2, 3), vec![0.25; tokens * 6]).unwrap()
    }

    #[test]
    fn prompts_that_cannot_be_screened_are_refused_before_a_call() {
        assert!(check_length(3, 77).is_ok() && check_length(77, 77).is_ok());
        let short = check_length(2, 77).unwrap_err().to_string();
        assert!(short.contains('2') && short.contains("content"), "{short}");
        let long = check_length(80, 77).unwrap_err().to_string();
        assert!(long.contains("80") && long.contains("77"), "{long}");
    }

    #[test]
    fn maps_that_do_not_fit_are_refused_by_name() {
        let refused = |tokens, size, values: Vec<f32>| {
            CallMaps::new(tokens, size, values).unwrap_err().to_string()
        };
        assert!(refused(2, (2, 2), vec![0.0; 8]).contains("2 tokens"));
        assert!(refused(3, (2, 2), vec![0.0; 11]).contains("11 values"));
        assert!(refused(3, (0, 2), Vec::new()).contains("at least one pixel"));
        assert!(refused(3, (usize::MAX, 2), Vec::new()).contains("at least one pixel"));
        let mut values = vec![0.0; 12];
        values[9] = f32::NAN;
        assert!(refused(3, (2, 2), values).contains("token 2"));
    }

    #[test]
    fn calls_must_be_alike_and_there_must_be_one() {
        assert!(matches!(
            TokenMaps::new(Vec::new()),
            Err(DefenseError::NoSuchCall { .. })
        ));
        assert!(matches!(
            TokenMaps::new(vec![maps(3), maps(4)]),
            Err(DefenseError::MapShape { .. })
        ));
        assert!(TokenMaps::from_values(3, (2, 2), &[0.1; 25]).is_err());
        assert!(TokenMaps::from_values(3, (usize::MAX, 2), &[0.1; 25]).is_err());
        let mut two = TokenMaps::from_values(3, (2, 2), &[0.1; 24]).unwrap();
        assert_eq!(two.first(2).unwrap().len(), 2);
        let missing = two.first(3).unwrap_err().to_string();
        assert!(missing.contains('2'), "{missing}");
    }

    #[test]
    fn a_call_is_made_once_and_only_when_it_is_asked_for() {
        let mut asked = Vec::new();
        let mut lazy = LazyMaps::new(|call| {
            asked.push(call);
            Ok(maps(4))
        });
        at(&mut lazy, 1).unwrap();
        at(&mut lazy, 0).unwrap();
        lazy.first(3).unwrap();
        assert_eq!(lazy.calls_made(), 3);
        assert_eq!(lazy.into_maps().len(), 3);
        assert_eq!(asked, [0, 1, 2]);
        let mut uneven = LazyMaps::new(|call| Ok(maps(3 + call)));
        assert!(matches!(
            uneven.first(2),
            Err(DefenseError::MapShape { .. })
        ));
    }

    #[test]
    fn distances_are_euclidean_at_any_length() {
        let (a, b): (Vec<f32>, Vec<f32>) =
            (0..19).map(|i| (i as f32 * 0.5, 3.0 - i as f32)).unzip();
        let plain: f64 = a
            .iter()
            .zip(&b)
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
            .sum();
        assert!((distance(&a, &b) - plain.sqrt()).abs() < 1e-12);
        assert!((norm(&a) - distance(&a, &[0.0; 19])).abs() < 1e-12);
    }
}
