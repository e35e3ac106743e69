//! Loading a row of tiles from planes and transforming it.
//!
//! Transformed values lie as `[point 0..36][tile][padded channel]`; points are `point_stride` floats apart, one cache line
//! more than their size, because at a power of two all 36 would fall into the same cache sets.

use crate::simd::Simd;
use crate::transpose::{Listed, to_channels_last};
use crate::winograd::{IN, OUT, input, output_transposed};

/// How images are cut into tiles. Row `r` of tiles is row `r % down` of image `r / down`.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    pub height: usize,
    pub width: usize,
    pub across: usize,
    pub down: usize,
    /// Rows of tiles in the whole batch.
    pub rows: usize,
}

impl Tiles {
    pub(crate) fn new(batch: usize, height: usize, width: usize) -> Self {
        let (across, down) = (width.div_ceil(OUT), height.div_ceil(OUT));
        Tiles {
            height,
            width,
            across,
            down,
            rows: batch * down,
        }
    }
    /// Pixels between two rows of the padded scratch.
    pub(crate) fn padded_width(&self) -> usize {
        self.across * OUT + 2
    }
    /// Floats of the padded scratch for `channels` padded channels.
    pub(crate) fn scratch(&self, channels: usize) -> usize {
        IN * self.padded_width() * channels
    }
}

/// Distance of two points.
pub(crate) fn point_stride(tiles: usize, padded_channels: usize) -> usize {
    tiles * padded_channels + 16
}

/// A ring of six padded channels-last rows. Row `y` of the image lies in slot `(y + 1) % 6`, so that moving down a row of
/// tiles loads four rows and keeps two.
pub(crate) struct Ring<'a> {
    pub tiles: Tiles,
    /// Channels, and channels padded to the lanes.
    pub channels: usize,
    pub padded: usize,
    pub at: *mut f32,
    /// For one load: the place of every pixel.
    pub places: &'a mut Vec<usize>,
}

impl Ring<'_> {
    /// Clears the scratch, borders included.
    #[inline(always)]
    pub(crate) unsafe fn clear(&mut self) {
        // SAFETY: `at` has this many floats.
        unsafe { std::ptr::write_bytes(self.at, 0, self.tiles.scratch(self.padded)) };
    }

    #[inline(always)]
    unsafe fn row(&self, y: isize) -> *mut f32 {
        let slot = (y + 1) as usize % IN;
        // SAFETY: six slots of this size exist.
        unsafe { self.at.add(slot * self.tiles.padded_width() * self.padded) }
    }

    /// Loads rows `from..to` of an image (rows outside of it are zero); pixel 0 goes to column 1.
    #[inline(always)]
    unsafe fn load<S: Simd>(&mut self, image: *const f32, from: isize, to: isize) {
        let t = self.tiles;
        // SAFETY: rows are clipped to the image; slots hold whole rows.
        unsafe {
            for y in from..to {
                if y < 0 || y >= t.height as isize {
                    std::ptr::write_bytes(self.row(y), 0, t.padded_width() * self.padded);
                }
            }
            let (first, last) = (from.max(0), to.min(t.height as isize));
            if first >= last {
                return;
            }
            self.places.clear();
            for y in first..last {
                let start = self.row(y).offset_from(self.at) as usize + self.padded;
                for x in 0..t.width {
                    self.places.push(start + x * self.padded);
                }
            }
            let plane = t.height * t.width;
            let src = image.add(first as usize * t.width);
            let pixels = (last - first) as usize * t.width;
            let places = Listed(self.places.as_ptr());
            to_channels_last::<S, _>(src, plane, self.channels, pixels, self.at, places);
        }
    }

    /// Makes the six rows around row `down` of tiles present; `fresh` if the row above was not the last one loaded.
    #[inline(always)]
    pub(crate) unsafe fn move_to<S: Simd>(&mut self, image: *const f32, down: usize, fresh: bool) {
        let top = (down * OUT) as isize;
        // SAFETY: as for `load`.
        unsafe { self.load::<S>(image, if fresh { top - 1 } else { top + 1 }, top + 5) };
    }

    /// Makes the four rows of row `down` of tiles present, without their surroundings.
    #[inline(always)]
    pub(crate) unsafe fn move_inside<S: Simd>(&mut self, image: *const f32, down: usize) {
        let top = (down * OUT) as isize;
        // SAFETY: as for `load`.
        unsafe { self.load::<S>(image, top, top + OUT as isize) };
    }

    /// Bᵀ d B of every tile of the row; `points` is at the row's first tile.
    #[inline(always)]
    pub(crate) unsafe fn transform_input<S: Simd>(
        &self,
        down: usize,
        points: *mut f32,
        stride: usize,
    ) {
        let top = (down * OUT) as isize - 1;
        // SAFETY: the ring holds rows top..top + 6 and 4 across + 2 columns; 36 points of the row's tiles are writable.
        unsafe {
            let mut rows = [self.at as *const f32; IN];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = self.row(top + i as isize);
            }
            for tile in 0..self.tiles.across {
                for c in (0..self.padded).step_by(S::LANES) {
                    let from = tile * OUT * self.padded + c;
                    let to = points.add(tile * self.padded + c);
                    let zero = S::splat(0.0);
                    let mut half = [[zero; IN]; IN];
                    for x in 0..IN {
                        let mut d = [zero; IN];
                        for y in 0..IN {
                            d[y] = S::load(rows[y].add(from + x * self.padded));
                        }
                        let d = input::<S>(d);
                        for y in 0..IN {
                            half[y][x] = d[y];
                        }
                    }
                    for y in 0..IN {
                        let d = input::<S>(half[y]);
                        for x in 0..IN {
                            S::store(to.add((y * IN + x) * stride), d[x]);
                        }
                    }
                }
            }
        }
    }

    /// A y Aᵀ of every tile of the row, of an output gradient; `points` is at the row's first tile.
    #[inline(always)]
    pub(crate) unsafe fn transform_gradient<S: Simd>(
        &self,
        down: usize,
        points: *mut f32,
        stride: usize,
    ) {
        let top = (down * OUT) as isize;
        // SAFETY: the ring holds rows top..top + 4 and 4 across + 1 columns; 36 points of the row's tiles are writable.
        unsafe {
            let mut rows = [self.at as *const f32; OUT];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = self.row(top + i as isize);
            }
            for tile in 0..self.tiles.across {
                for c in (0..self.padded).step_by(S::LANES) {
                    let from = (tile * OUT + 1) * self.padded + c;
                    let to = points.add(tile * self.padded + c);
                    let zero = S::splat(0.0);
                    let mut half = [[zero; OUT]; IN];
                    for x in 0..OUT {
                        let mut d = [zero; OUT];
                        for y in 0..OUT {
                            d[y] = S::load(rows[y].add(from + x * self.padded));
                        }
                        let d = output_transposed::<S>(d);
                        for y in 0..IN {
                            half[y][x] = d[y];
                        }
                    }
                    for y in 0..IN {
                        let d = output_transposed::<S>(half[y]);
                        for x in 0..IN {
                            S::store(to.add((y * IN + x) * stride), d[x]);
                        }
                    }
                }
            }
        }
    }
}
