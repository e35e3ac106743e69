//! The gradient of a bias that is added to every pixel of a channel.

use crate::isa::{self, Kernel};
use crate::parallel::{self, Shared};
use crate::shape::check;
use crate::simd::{Simd, sum};

/// `out[c] = Σ_{b, p} gy[b][c][p]`.
pub fn bias_grad(gy: &[f32], batch: usize, channels: usize, hw: usize, out: &mut [f32]) {
    check("gy", gy, batch * channels * hw);
    check("out", out, channels);
    if gy.is_empty() {
        return out.fill(0.0);
    }
    let isa = isa::current();
    let tasks = parallel::tasks(channels, (parallel::LEAST / (batch * hw)).max(1));
    let to = Shared::write(out);
    parallel::for_each(tasks, |task| {
        let range = parallel::range(channels, tasks, task);
        isa.run(Sums {
            gy,
            batch,
            channels,
            hw,
            range,
            out: to,
        });
    });
}

/// The sums of some channels. Tasks write disjoint elements of `out`.
struct Sums<'a> {
    gy: &'a [f32],
    batch: usize,
    channels: usize,
    hw: usize,
    range: std::ops::Range<usize>,
    out: Shared,
}

impl Kernel for Sums<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: every plane exists in gy, and the channels of out are this task's.
        unsafe {
            for c in self.range.clone() {
                let mut sums = [S::splat(0.0); 4];
                for image in 0..self.batch {
                    let plane = self.gy.as_ptr().add((image * self.channels + c) * self.hw);
                    let mut i = 0;
                    while i + 4 * S::LANES <= self.hw {
                        for j in 0..4 {
                            sums[j] = S::add(sums[j], S::load(plane.add(i + j * S::LANES)));
                        }
                        i += 4 * S::LANES;
                    }
                    while i < self.hw {
                        let n = S::LANES.min(self.hw - i);
                        sums[0] = S::add(sums[0], S::load_partial(plane.add(i), n, S::splat(0.0)));
                        i += n;
                    }
                }
                let total = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
                *self.out.at(c) = sum::<S>(total);
            }
        }
    }
}
