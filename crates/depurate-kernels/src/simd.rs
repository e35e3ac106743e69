//! The vector operations that every kernel is written in, once, for all instruction sets.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

use crate::isa::Kernel;

/// One instruction set's f32 vectors.
///
/// # Safety
/// All functions share two conditions. The processor has the instruction set: guaranteed inside [`Kernel::run`], because
/// only [`crate::isa`] starts a kernel. Pointers are valid for the lanes that are read or written; no alignment is needed.
///
/// Functions are `#[inline(always)]` so that they are compiled with the features of the entry that they end up in;
/// closures would not be, so kernels use loops.
pub(crate) trait Simd: Copy + 'static {
    /// f32 lanes in a vector.
    const LANES: usize;
    /// Vectors side by side in the widest GEMM panel.
    const PANEL: usize;
    /// A vector of `LANES` lanes.
    type V: Copy;
    /// `LANES` vectors: a square block that can be transposed.
    type Block: Copy + AsRef<[Self::V]> + AsMut<[Self::V]>;

    /// Runs a kernel in a function of its own, compiled for this instruction set.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Out;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `n <= LANES` lanes from memory, the others from `fill`.
    unsafe fn load_partial(p: *const f32, n: usize, fill: Self::V) -> Self::V;
    /// Stores the first `n <= LANES` lanes.
    unsafe fn store_partial(p: *mut f32, n: usize, v: Self::V);

    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of `a` and `b`; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of `a` and `b`; `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^k` for lanes that hold integers in -126..=127.
    unsafe fn pow2(k: Self::V) -> Self::V;
    /// Lane by lane, `yes` where `a < b`, otherwise `no`.
    unsafe fn select_lt(a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;

    unsafe fn zero_block() -> Self::Block;
    /// Transposes the square block in place.
    unsafe fn transpose(block: &mut Self::Block);
}

/// Lanes of `v` folded by addition, in a fixed order.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn sum<S: Simd>(v: S::V) -> f32 {
    let mut lanes = [0f32; 16];
    // SAFETY: 16 lanes hold the widest vector.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    let mut width = S::LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// `e^x`, relative error about 1e-7; 0 below -87.3, capped at `e^88`, NaN for NaN.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: register arithmetic only.
    unsafe {
        let lowest = S::splat(-87.3);
        let c = S::min(S::splat(88.0), S::max(lowest, x));
        let k = S::round(S::mul(c, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, so that c - k ln 2 keeps its low bits
        let r = S::fma(k, S::splat(-0.693_359_4), c);
        let r = S::fma(k, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            p = S::fma(p, r, S::splat(coefficient));
        }
        let p = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        S::select_lt(x, lowest, S::splat(0.0), S::mul(p, S::pow2(k)))
    }
}

/// `1 / (1 + e^-x)`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: register arithmetic only.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}
