//! The input gradient of the stride-2 convolution, one matrix product for each of the four classes of input pixels.
//!
//! In padded coordinates, input row Y = 2a + py meets the taps ky of the same parity, at output row a - ky / 2. So each
//! class (py, px) is a small stride-1 correlation of the output gradient: with 4, 2, 2 and 1 taps.

use crate::gemm::{Gemm, Start, Strided, Taps};
use crate::isa::{Isa, Kernel};
use crate::padded::Geometry;
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::simd::Simd;

/// Taps of the class of parity `p`, in one direction.
fn taps_of(p: usize) -> &'static [usize] {
    if p == 0 { &[0, 2] } else { &[1] }
}

/// gx of gy; `w` is [c_out][c_in][9].
pub(crate) fn run(
    gy: &[f32],
    w: &[f32],
    (batch, c_in, c_out): (usize, usize, usize),
    geometry: Geometry,
    gx: &mut [f32],
    isa: Isa,
) {
    let g = geometry;
    // class rows and columns a, b with 2a + p - before inside of the image
    let down = (g.height - 1 + g.before) / 2 + 1;
    let across = (g.width - 1 + g.before) / 2 + 1;
    let pitch = across + 1;
    let fits = super::direct::BAND_BUDGET / (c_out * pitch);
    let wanted = (rayon::current_num_threads() * 2).div_ceil(batch);
    let band = fits.min(down.div_ceil(wanted)).clamp(2.min(down), down);
    let bands = down.div_ceil(band);
    let channel = (band + 1) * pitch;
    let mut scratch = scratch::take([c_in * c_out * 9]);
    let [classes] = scratch.slices();
    let mut offsets = scratch::offsets();
    for class in 0..4 {
        pack_class(w, c_in, c_out, class, classes);
        for co in 0..c_out {
            for ky in taps_of(class / 2) {
                for kx in taps_of(class % 2) {
                    offsets.push(co * channel + (1 - ky / 2) * pitch + 1 - kx / 2);
                }
            }
        }
    }
    let out = Shared::write(gx);
    parallel::for_each(batch * bands, |task| {
        let (image, first) = (task / bands, task % bands * band);
        let rows = band.min(down - first);
        isa.run(Band {
            gy,
            classes,
            offsets: &offsets,
            c_in,
            c_out,
            g,
            across,
            pitch,
            channel,
            image,
            first,
            rows,
            gx: out,
        });
    });
}

/// Where the weights of a class start, in units of c_in * c_out: classes have 4, 2, 2, 1 taps.
const CLASS_START: [usize; 4] = [0, 4, 6, 8];

/// `classes[class][ci][co][tap of the class]`.
fn pack_class(w: &[f32], c_in: usize, c_out: usize, class: usize, classes: &mut [f32]) {
    let mut to = classes[CLASS_START[class] * c_in * c_out..].iter_mut();
    for ci in 0..c_in {
        for co in 0..c_out {
            for ky in taps_of(class / 2) {
                for kx in taps_of(class % 2) {
                    if let Some(to) = to.next() {
                        *to = w[(co * c_in + ci) * 9 + ky * 3 + kx];
                    }
                }
            }
        }
    }
}

/// Class rows `first..first + rows` of one image. Tasks write disjoint rows of `gx`.
struct Band<'a> {
    gy: &'a [f32],
    classes: &'a [f32],
    offsets: &'a [usize],
    c_in: usize,
    c_out: usize,
    g: Geometry,
    across: usize,
    pitch: usize,
    channel: usize,
    image: usize,
    first: usize,
    rows: usize,
    gx: Shared,
}

impl Kernel for Band<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let run = ((self.rows - 1) * self.pitch + self.across).next_multiple_of(S::LANES);
        let mut scratch = scratch::take([self.c_out * self.channel, self.c_in * run]);
        let [planes, out] = scratch.slices();
        self.fill(planes);
        for class in 0..4 {
            let taps = taps_of(class / 2).len() * taps_of(class % 2).len();
            let at = CLASS_START[class];
            // SAFETY: the class's weights are [c_in][c_out taps]; a tap's run, rounded up to the lanes, ends inside
            // the scratch and its slack; out has c_in rows of whole vectors.
            unsafe {
                S::call(Gemm {
                    m: self.c_in,
                    n: run,
                    k: self.c_out * taps,
                    a: Strided {
                        at: self.classes.as_ptr().add(at * self.c_in * self.c_out),
                        row: self.c_out * taps,
                        step: 1,
                    },
                    b: Taps {
                        at: planes.as_ptr(),
                        offsets: self.offsets.as_ptr().add(at * self.c_out),
                    },
                    b_panel: S::LANES * S::PANEL,
                    c: out.as_mut_ptr(),
                    c_row: run,
                    start: Start::Zero,
                    exact: false,
                });
            }
            self.spread(class, out, run);
        }
    }
}

impl Band<'_> {
    /// Padded planes of the output gradient: row r is row first + r - 1, column j is column j - 1.
    fn fill(&self, planes: &mut [f32]) {
        let (oh, ow) = (self.g.out_height, self.g.out_width);
        for co in 0..self.c_out {
            let plane = (self.image * self.c_out + co) * oh;
            let channel = &mut planes[co * self.channel..(co + 1) * self.channel];
            for (r, row) in channel.chunks_exact_mut(self.pitch).enumerate() {
                let y = (self.first + r).wrapping_sub(1);
                if y >= oh {
                    row.fill(0.0);
                } else {
                    let source = &self.gy[(plane + y) * ow..(plane + y + 1) * ow];
                    row[0] = 0.0;
                    let wide = ow.min(self.pitch - 1);
                    row[1..=wide].copy_from_slice(&source[..wide]);
                    row[1 + wide..].fill(0.0);
                }
            }
        }
    }

    /// Writes one class to its pixels.
    fn spread(&self, class: usize, out: &[f32], run: usize) {
        let (py, px) = (class / 2, class % 2);
        let g = self.g;
        for ci in 0..self.c_in {
            let plane = (self.image * self.c_in + ci) * g.height;
            for r in 0..self.rows {
                let y = (2 * (self.first + r) + py).wrapping_sub(g.before);
                if y >= g.height {
                    continue;
                }
                for b in 0..self.across {
                    let x = (2 * b + px).wrapping_sub(g.before);
                    if x < g.width {
                        // SAFETY: (y, x) is inside the image, and row y belongs to this task alone.
                        unsafe {
                            *self.gx.at((plane + y) * g.width + x) =
                                out[ci * run + r * self.pitch + b]
                        };
                    }
                }
            }
        }
    }
}
