//! Padded planes: the input of a direct 3x3 convolution, laid out so that every tap is the same run of memory, shifted.
//!
//! Stride 1: a channel is one plane of (rows + 2) x (width + 2). An output pixel (y, x) is number `y * pitch + x` of a flat
//! run, and tap (ky, kx) reads it `ky * pitch + kx` further on; the two pixels at the end of a row are computed and dropped.
//! Stride 2: a channel is four such planes, of even and odd rows and columns, and each tap again one shifted run.

use crate::scratch;
use crate::{ConvShape, Stride2Pad};

/// Sizes of a direct 3x3 convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub stride: usize,
    /// Zeros before the first row and column.
    pub before: usize,
    pub height: usize,
    pub width: usize,
    pub out_height: usize,
    pub out_width: usize,
    /// Floats from one row of a padded plane to the next.
    pub pitch: usize,
}

impl Geometry {
    pub(crate) fn stride1(s: ConvShape) -> Self {
        Geometry {
            stride: 1,
            before: 1,
            height: s.height,
            width: s.width,
            out_height: s.height,
            out_width: s.width,
            pitch: s.width + 2,
        }
    }

    pub(crate) fn stride2(s: ConvShape, pad: Stride2Pad) -> Self {
        let (out_height, out_width) = pad.out_size(s.height, s.width);
        Geometry {
            stride: 2,
            before: pad.before(),
            height: s.height,
            width: s.width,
            out_height,
            out_width,
            pitch: out_width + 1,
        }
    }

    /// Planes a channel.
    fn phases(&self) -> usize {
        self.stride * self.stride
    }
    /// Rows of a plane that holds what `rows` output rows need.
    fn plane_rows(&self, rows: usize) -> usize {
        if self.stride == 1 { rows + 2 } else { rows + 1 }
    }
    /// Floats of a channel for `rows` output rows.
    pub(crate) fn channel(&self, rows: usize) -> usize {
        self.phases() * self.plane_rows(rows) * self.pitch
    }
    /// Length of the flat run of `rows` output rows.
    pub(crate) fn run(&self, rows: usize) -> usize {
        (rows - 1) * self.pitch + self.out_width
    }
    /// Where tap (ky, kx) starts inside a channel.
    fn tap(&self, rows: usize, ky: usize, kx: usize) -> usize {
        if self.stride == 1 {
            ky * self.pitch + kx
        } else {
            let phase = (ky % 2) * 2 + kx % 2;
            (phase * self.plane_rows(rows) + ky / 2) * self.pitch + kx / 2
        }
    }
    /// Where every (channel, tap) starts, in the order of a weight's memory.
    pub(crate) fn taps(&self, channels: usize, rows: usize) -> scratch::Offsets {
        let mut offsets = scratch::offsets();
        for c in 0..channels {
            for t in 0..9 {
                offsets.push(c * self.channel(rows) + self.tap(rows, t / 3, t % 3));
            }
        }
        offsets
    }

    /// Output rows of a band whose padded input stays near `budget` floats; enough bands for all threads.
    pub(crate) fn band(&self, channels: usize, batch: usize, budget: usize) -> usize {
        let fits = budget / (channels * self.phases() * self.pitch);
        let wanted = (rayon::current_num_threads() * 2).div_ceil(batch);
        fits.min(self.out_height.div_ceil(wanted))
            .clamp(2.min(self.out_height), self.out_height)
    }

    /// Fills `to` with what output rows `first..first + rows` need of one image.
    pub(crate) fn fill(
        &self,
        image: &[f32],
        channels: usize,
        first: usize,
        rows: usize,
        to: &mut [f32],
    ) {
        let plane = self.height * self.width;
        let mut to = to.chunks_exact_mut(self.pitch);
        for c in 0..channels {
            let source = &image[c * plane..(c + 1) * plane];
            for phase in 0..self.phases() {
                let (py, px) = (phase / 2, phase % 2);
                for r in 0..self.plane_rows(rows) {
                    let Some(row) = to.next() else { return };
                    let y = ((first + r) * self.stride + py).wrapping_sub(self.before);
                    if y >= self.height {
                        row.fill(0.0);
                    } else {
                        self.fill_row(&source[y * self.width..(y + 1) * self.width], px, row);
                    }
                }
            }
        }
    }

    fn fill_row(&self, source: &[f32], px: usize, row: &mut [f32]) {
        if self.stride == 1 {
            row[0] = 0.0;
            row[1..=self.width].copy_from_slice(source);
            row[self.width + 1] = 0.0;
            return;
        }
        // column i of the plane is column 2 i + px - before of the image
        let shift = self.before.saturating_sub(px);
        let start = if px >= self.before {
            px - self.before
        } else {
            2 * shift - (self.before - px)
        };
        let (edge, inside) = row.split_at_mut(shift);
        edge.fill(0.0);
        let picked = source.get(start..).unwrap_or_default().iter().step_by(2);
        let count = picked.len().min(inside.len());
        for (to, from) in inside.iter_mut().zip(picked) {
            *to = *from;
        }
        inside[count..].fill(0.0);
    }
}
