//! Which instruction set the kernels run on, chosen once at run time.

use std::cell::Cell;
use std::sync::OnceLock;

use crate::simd::Simd;
use crate::simd::portable::Portable;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust arrays of 4 lanes.
    Portable,
    /// AVX2 with FMA, 8 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512F, 16 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON, 4 lanes.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The instruction sets that this processor has, the fastest last.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut found = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Isa::Avx2);
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
                found.push(Isa::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            found.push(Isa::Neon);
        }
        found
    }

    /// f32 lanes in a vector; channels-last scratch is padded to a multiple of it.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Isa::Portable => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => crate::simd::avx2::Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => crate::simd::avx512::Avx512::LANES,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => crate::simd::neon::Neon::LANES,
        }
    }

    /// Columns of a GEMM panel.
    pub(crate) fn panel(self) -> usize {
        match self {
            Isa::Portable => Portable::LANES * Portable::PANEL,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => crate::simd::avx2::Avx2::LANES * crate::simd::avx2::Avx2::PANEL,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => crate::simd::avx512::Avx512::LANES * crate::simd::avx512::Avx512::PANEL,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => crate::simd::neon::Neon::LANES * crate::simd::neon::Neon::PANEL,
        }
    }

    /// Runs a kernel on this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            Isa::Portable => run_portable(kernel),
            // SAFETY: an `Isa` reaches this point from `current`, which only gives those in `available`.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => unsafe { run_neon(kernel) },
        }
    }
}

/// A piece of work that is written once for every instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Out;
    /// Does the work; must be `#[inline(always)]`, so that it is compiled with the features of its entry.
    ///
    /// # Safety
    /// The processor has the instruction set `S`, and the kernel's own pointers are valid as its fields say.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

#[inline(never)]
pub(crate) fn run_portable<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: no instruction set is needed; whoever built the kernel vouches for its pointers.
    unsafe { kernel.run::<Portable>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline(never)]
pub(crate) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are on here; whoever built the kernel vouches for its pointers.
    unsafe { kernel.run::<crate::simd::avx2::Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
#[inline(never)]
pub(crate) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are on here; whoever built the kernel vouches for its pointers.
    unsafe { kernel.run::<crate::simd::avx512::Avx512>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
#[inline(never)]
pub(crate) unsafe fn run_neon<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are on here; whoever built the kernel vouches for its pointers.
    unsafe { kernel.run::<crate::simd::neon::Neon>() }
}

thread_local! {
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The instruction set for kernels started by this thread.
pub(crate) fn current() -> Isa {
    static BEST: OnceLock<Isa> = OnceLock::new();
    FORCED.get().unwrap_or_else(|| {
        *BEST.get_or_init(|| Isa::available().last().copied().unwrap_or(Isa::Portable))
    })
}

/// Runs `f` with every kernel that this thread starts on `isa`. For tests and benchmarks.
///
/// # Panics
/// If the processor does not have `isa`.
#[doc(hidden)]
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    assert!(
        Isa::available().contains(&isa),
        "this processor has no {isa:?}"
    );
    let before = FORCED.replace(Some(isa));
    let result = f();
    FORCED.set(before);
    result
}
