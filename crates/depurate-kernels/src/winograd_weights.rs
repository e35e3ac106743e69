//! The weights' side of the Winograd convolution: `U = G g Gᵀ`, as `[point 0..36][panel][channel in][panel width]`.

use std::sync::OnceLock;

use crate::isa::{self, Isa, Kernel};
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::simd::Simd;
use crate::transpose::{Every, to_channels_last};
use crate::winograd::{IN, POINTS, weight};

/// Channels in of one task of the weight transform.
const WEIGHT_CHUNK: usize = 16;

/// Which way the weights are used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From input to output.
    Forward,
    /// From output gradient to input gradient: channels change roles, taps turn by 180 degrees.
    Backward,
}

/// The transformed weights of one layer, made when they are first needed and kept. They are valid for one set of weights
/// and one shape of them: whoever holds them sees to that.
#[derive(Debug, Default)]
pub struct Transformed {
    forward: OnceLock<(Isa, scratch::Aligned)>,
    backward: OnceLock<(Isa, scratch::Aligned)>,
}

impl Transformed {
    /// Bytes that one direction of a layer takes: at least 4 times its weights.
    pub fn bytes(c_in: usize, c_out: usize) -> usize {
        let isa = isa::current();
        let of = |k, n| POINTS * Packed::new(k, n, isa).point;
        size_of::<f32>() * of(c_in, c_out).max(of(c_out, c_in))
    }

    /// The weights of a direction, made now if they were not; none if they were made for another instruction set.
    pub(crate) fn of(
        &self,
        direction: Direction,
        packed: Packed,
        isa: Isa,
        make: impl Fn(&mut [f32]),
    ) -> Option<&[f32]> {
        let kept = match direction {
            Direction::Forward => &self.forward,
            Direction::Backward => &self.backward,
        };
        if kept.get().is_none() {
            let mut u = scratch::Aligned::new(POINTS * packed.point);
            // not inside `get_or_init`: a thread that waits in a kernel may start another one of the same layer
            make(u.slice_mut());
            let _ = kept.set((isa, u));
        }
        let (made_for, u) = kept.get()?;
        (*made_for == isa).then(|| u.slice())
    }
}

/// How the transformed weights lie.
#[derive(Clone, Copy)]
pub(crate) struct Packed {
    pub k: usize,
    pub n: usize,
    /// Columns of a panel.
    pub width: usize,
    /// Floats of a panel.
    pub panel: usize,
    /// Floats from point to point.
    pub point: usize,
}

impl Packed {
    pub fn new(k: usize, n: usize, isa: Isa) -> Self {
        let width = isa.panel().min(n.next_multiple_of(isa.lanes()));
        let panel = k * width;
        Packed {
            k,
            n,
            width,
            panel,
            point: n.div_ceil(width) * panel + 16,
        }
    }

    /// Transforms the weights `w` of a layer into `u`.
    pub fn fill(self, w: &[f32], direction: Direction, u: &mut [f32], isa: Isa) {
        let c_in = match direction {
            Direction::Forward => self.k,
            Direction::Backward => self.n,
        };
        let blocks = self.n.div_ceil(isa.lanes());
        let chunks = self.k.div_ceil(WEIGHT_CHUNK);
        let out = Shared::write(u);
        let task = |task: usize| {
            let (block, chunk) = (task / chunks, task % chunks);
            let ks = chunk * WEIGHT_CHUNK..((chunk + 1) * WEIGHT_CHUNK).min(self.k);
            isa.run(WeightBlock {
                w,
                c_in,
                packed: self,
                direction,
                block,
                ks,
                u: out,
            });
        };
        // waking the other threads costs more than a small layer's weights
        if self.n * self.k <= 32 * 32 {
            (0..blocks * chunks).for_each(task);
        } else {
            parallel::for_each(blocks * chunks, task);
        }
    }
}

/// G g Gᵀ of one vector of output channels and some input channels. Tasks write disjoint parts of `u`.
struct WeightBlock<'a> {
    w: &'a [f32],
    c_in: usize,
    packed: Packed,
    direction: Direction,
    block: usize,
    ks: std::ops::Range<usize>,
    u: Shared,
}

impl Kernel for WeightBlock<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let p = self.packed;
        let first = self.block * S::LANES;
        let channels = S::LANES.min(p.n - first);
        let mut taps = [0f32; WEIGHT_CHUNK * 9 * 16];
        // SAFETY: channels first.. and steps ks exist in w; u has room for all points, panels and steps.
        unsafe {
            if self.direction == Direction::Forward {
                let src = self.w.as_ptr().add((first * self.c_in + self.ks.start) * 9);
                let (plane, pixels) = (self.c_in * 9, self.ks.len() * 9);
                to_channels_last::<S, _>(
                    src,
                    plane,
                    channels,
                    pixels,
                    taps.as_mut_ptr(),
                    Every(S::LANES),
                );
            }
            for (i, k) in self.ks.clone().enumerate() {
                let g = if self.direction == Direction::Forward {
                    taps.as_ptr().add(i * 9 * S::LANES)
                } else {
                    let src = self.w.as_ptr().add((k * self.c_in + first) * 9);
                    to_channels_last::<S, _>(
                        src,
                        9,
                        channels,
                        9,
                        taps.as_mut_ptr(),
                        Every(S::LANES),
                    );
                    taps.as_ptr()
                };
                let zero = S::splat(0.0);
                let mut half = [[zero; 3]; IN];
                for x in 0..3 {
                    let mut column = [zero; 3];
                    for y in 0..3 {
                        let tap = if self.direction == Direction::Forward {
                            y * 3 + x
                        } else {
                            8 - (y * 3 + x)
                        };
                        column[y] = S::load(g.add(tap * S::LANES));
                    }
                    let column = weight::<S>(column);
                    for y in 0..IN {
                        half[y][x] = column[y];
                    }
                }
                let at = first / p.width * p.panel + k * p.width + first % p.width;
                for y in 0..IN {
                    let row = weight::<S>(half[y]);
                    for x in 0..IN {
                        S::store(self.u.at((y * IN + x) * p.point + at), row[x]);
                    }
                }
            }
        }
    }
}
