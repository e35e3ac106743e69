//! What the processor could do: the yardstick for the kernels' rates.

use std::time::Instant;

use rayon::prelude::*;

use crate::isa::{self, Kernel};
use crate::simd::{Simd, sum};

/// Chains of operations that do not wait for each other: more than a unit's latency times the units.
const CHAINS: usize = 12;
const ROUNDS: usize = 1 << 22;

/// Floating-point operations a second of all threads together, in fused multiply-adds on registers.
pub fn operations_per_second() -> f64 {
    let (isa, threads) = (isa::current(), rayon::current_num_threads());
    let start = Instant::now();
    let operations: f64 = (0..threads).into_par_iter().map(|_| isa.run(Chains)).sum();
    operations / start.elapsed().as_secs_f64()
}

struct Chains;

impl Kernel for Chains {
    type Out = f64;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f64 {
        // SAFETY: register arithmetic only.
        unsafe {
            let (factor, more) = (S::splat(0.999), S::splat(0.001));
            let mut values = [S::splat(1.0); CHAINS];
            for (i, value) in values.iter_mut().enumerate() {
                *value = S::splat(i as f32); // equal chains would be computed once
            }
            for _ in 0..ROUNDS {
                for value in &mut values {
                    *value = S::fma(*value, factor, more);
                }
            }
            let mut total = values[0];
            for value in &values[1..] {
                total = S::add(total, *value);
            }
            std::hint::black_box(sum::<S>(total));
            (2 * S::LANES * CHAINS * ROUNDS) as f64
        }
    }
}
