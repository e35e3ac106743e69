//! Between the planar layout of the interface and the channels-last layout of the scratch.
//!
//! Planar: a channel's pixels side by side, channels a plane apart. Channels-last: a pixel's channels side by side,
//! padded with zeros to a multiple of the lanes. Both directions go through square register blocks.

use crate::simd::Simd;

/// The place of pixel `p` in channels-last scratch, in floats.
pub(crate) trait Place: Copy {
    /// # Safety
    /// `p` is one of the pixels.
    unsafe fn of(self, p: usize) -> usize;
}

/// Pixels at a constant distance.
#[derive(Clone, Copy)]
pub(crate) struct Every(pub usize);

impl Place for Every {
    #[inline(always)]
    unsafe fn of(self, p: usize) -> usize {
        p * self.0
    }
}

/// Pixels at listed places.
#[derive(Clone, Copy)]
pub(crate) struct Listed(pub *const usize);

impl Place for Listed {
    #[inline(always)]
    unsafe fn of(self, p: usize) -> usize {
        // SAFETY: the table has an entry for every pixel.
        unsafe { *self.0.add(p) }
    }
}

/// `pixels` pixels of `channels` planes to channels-last.
///
/// # Safety
/// The planes are readable, the places writable up to the padded channel count.
#[inline(always)]
pub(crate) unsafe fn to_channels_last<S: Simd, P: Place>(
    src: *const f32,
    plane: usize,
    channels: usize,
    pixels: usize,
    dst: *mut f32,
    place: P,
) {
    let lanes = S::LANES;
    // SAFETY: only existing channels and pixels are read; places as promised.
    unsafe {
        let zero = S::splat(0.0);
        for c0 in (0..channels).step_by(lanes) {
            let nc = lanes.min(channels - c0);
            let src = src.add(c0 * plane);
            let dst = dst.add(c0);
            let mut p = 0;
            if nc == lanes {
                while p + lanes <= pixels {
                    let mut block = S::zero_block();
                    for i in 0..lanes {
                        block.as_mut()[i] = S::load(src.add(i * plane + p));
                    }
                    S::transpose(&mut block);
                    for i in 0..lanes {
                        S::store(dst.add(place.of(p + i)), block.as_ref()[i]);
                    }
                    p += lanes;
                }
            }
            while p < pixels {
                let np = lanes.min(pixels - p);
                let mut block = S::zero_block();
                for i in 0..nc {
                    block.as_mut()[i] = S::load_partial(src.add(i * plane + p), np, zero);
                }
                S::transpose(&mut block);
                for i in 0..np {
                    S::store(dst.add(place.of(p + i)), block.as_ref()[i]);
                }
                p += np;
            }
        }
    }
}

/// `pixels` channels-last pixels, `stride` floats apart, to `channels` planes.
///
/// # Safety
/// The pixels are readable up to the padded channel count, the planes writable.
#[inline(always)]
pub(crate) unsafe fn to_planes<S: Simd>(
    src: *const f32,
    stride: usize,
    channels: usize,
    pixels: usize,
    dst: *mut f32,
    plane: usize,
) {
    let lanes = S::LANES;
    // SAFETY: only existing pixels are read and existing channels written.
    unsafe {
        for c0 in (0..channels).step_by(lanes) {
            let nc = lanes.min(channels - c0);
            let src = src.add(c0);
            let dst = dst.add(c0 * plane);
            let mut p = 0;
            if nc == lanes {
                while p + lanes <= pixels {
                    let mut block = S::zero_block();
                    for i in 0..lanes {
                        block.as_mut()[i] = S::load(src.add((p + i) * stride));
                    }
                    S::transpose(&mut block);
                    for i in 0..lanes {
                        S::store(dst.add(i * plane + p), block.as_ref()[i]);
                    }
                    p += lanes;
                }
            }
            while p < pixels {
                let np = lanes.min(pixels - p);
                let mut block = S::zero_block();
                for i in 0..np {
                    block.as_mut()[i] = S::load(src.add((p + i) * stride));
                }
                S::transpose(&mut block);
                for i in 0..nc {
                    S::store_partial(dst.add(i * plane + p), np, block.as_ref()[i]);
                }
                p += np;
            }
        }
    }
}
