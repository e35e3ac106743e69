//! NEON: 4 lanes, 32 registers.
#![allow(clippy::undocumented_unsafe_blocks)] // every block is an intrinsic under the conditions of `Simd`

use std::arch::aarch64::*;

use super::Simd;
use crate::isa::Kernel;

#[derive(Clone, Copy)]
pub(crate) struct Neon;

type V = float32x4_t;

impl Simd for Neon {
    const LANES: usize = 4;
    const PANEL: usize = 4;
    type V = V;
    type Block = [V; 4];

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Out {
        // SAFETY: the caller already runs on this instruction set.
        unsafe { crate::isa::run_neon(kernel) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize, fill: V) -> V {
        let mut lanes = [0f32; 4];
        unsafe {
            vst1q_f32(lanes.as_mut_ptr(), fill);
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            vld1q_f32(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, n: usize, v: V) {
        let mut lanes = [0f32; 4];
        unsafe {
            vst1q_f32(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: V) -> V {
        unsafe { vsqrtq_f32(a) }
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: V) -> V {
        unsafe { vrndnq_f32(a) }
    }
    #[inline(always)]
    unsafe fn pow2(k: V) -> V {
        unsafe {
            let biased = vaddq_s32(vcvtnq_s32_f32(k), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn select_lt(a: V, b: V, yes: V, no: V) -> V {
        unsafe { vbslq_f32(vcltq_f32(a, b), yes, no) }
    }
    #[inline(always)]
    unsafe fn zero_block() -> [V; 4] {
        unsafe { [vdupq_n_f32(0.0); 4] }
    }
    #[inline(always)]
    unsafe fn transpose(block: &mut [V; 4]) {
        unsafe {
            let [a, b, c, d] = *block;
            let (ab0, ab1) = (vtrn1q_f32(a, b), vtrn2q_f32(a, b));
            let (cd0, cd1) = (vtrn1q_f32(c, d), vtrn2q_f32(c, d));
            let low = |x: V, y: V| vcombine_f32(vget_low_f32(x), vget_low_f32(y));
            let high = |x: V, y: V| vcombine_f32(vget_high_f32(x), vget_high_f32(y));
            *block = [low(ab0, cd0), low(ab1, cd1), high(ab0, cd0), high(ab1, cd1)];
        }
    }
}
