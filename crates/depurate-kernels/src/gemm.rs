//! Matrix product C (+)= A B with C in registers, for operands that are already where they should be.
//!
//! A is read one scalar at a time and spread over a vector, so it may have any strides; B and C have their columns side
//! by side in memory. Columns are walked in panels of [`Simd::PANEL`] vectors.

use crate::isa::Kernel;
use crate::simd::Simd;

/// Where row `i`, step `k` of A lies.
pub(crate) trait Left: Copy {
    /// # Safety
    /// `i` is a row of A.
    unsafe fn row(self, i: usize) -> *const f32;
    /// Distance of two steps of `k`.
    fn step(self) -> usize;
}

/// Rows at a constant distance.
#[derive(Clone, Copy)]
pub(crate) struct Strided {
    pub at: *const f32,
    pub row: usize,
    pub step: usize,
}

impl Left for Strided {
    #[inline(always)]
    unsafe fn row(self, i: usize) -> *const f32 {
        // SAFETY: as the caller promises.
        unsafe { self.at.add(i * self.row) }
    }
    #[inline(always)]
    fn step(self) -> usize {
        self.step
    }
}

/// Rows at listed offsets, steps side by side: the nine shifted views of a padded plane.
#[derive(Clone, Copy)]
pub(crate) struct Views {
    pub at: *const f32,
    pub offsets: *const usize,
}

impl Left for Views {
    #[inline(always)]
    unsafe fn row(self, i: usize) -> *const f32 {
        // SAFETY: as the caller promises; the table has an entry for every row.
        unsafe { self.at.add(*self.offsets.add(i)) }
    }
    #[inline(always)]
    fn step(self) -> usize {
        1
    }
}

/// Where step `k` of a panel of B lies.
pub(crate) trait Right: Copy {
    /// # Safety
    /// `k` is a step of B.
    unsafe fn step(self, k: usize) -> *const f32;
    /// The operand moved by `offset` floats.
    ///
    /// # Safety
    /// The result is still inside B.
    unsafe fn moved(self, offset: usize) -> Self;
}

/// Steps at a constant distance.
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    pub at: *const f32,
    pub step: usize,
}

impl Right for Steps {
    #[inline(always)]
    unsafe fn step(self, k: usize) -> *const f32 {
        // SAFETY: as the caller promises.
        unsafe { self.at.add(k * self.step) }
    }
    #[inline(always)]
    unsafe fn moved(self, offset: usize) -> Self {
        // SAFETY: as the caller promises.
        Steps {
            at: unsafe { self.at.add(offset) },
            ..self
        }
    }
}

/// Steps at listed offsets: the taps of a convolution over padded planes.
#[derive(Clone, Copy)]
pub(crate) struct Taps {
    pub at: *const f32,
    pub offsets: *const usize,
}

impl Right for Taps {
    #[inline(always)]
    unsafe fn step(self, k: usize) -> *const f32 {
        // SAFETY: as the caller promises; the table has an entry for every step.
        unsafe { self.at.add(*self.offsets.add(k)) }
    }
    #[inline(always)]
    unsafe fn moved(self, offset: usize) -> Self {
        // SAFETY: as the caller promises.
        Taps {
            at: unsafe { self.at.add(offset) },
            ..self
        }
    }
}

/// What C holds before the first step.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Zero.
    Zero,
    /// What is there.
    Accumulate,
    /// One value a row (a bias).
    Rows(*const f32),
}

/// C[m][n] (+)= A[m][k] B[k][n].
///
/// Pointers are valid for these sizes; C does not overlap A or B. The last vector of a row is read and written
/// partially if `exact`, otherwise rows of B and C may be touched up to the next multiple of the lanes.
#[derive(Clone, Copy)]
pub(crate) struct Gemm<A: Left, B: Right> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: A,
    pub b: B,
    /// Distance of two panels of B.
    pub b_panel: usize,
    pub c: *mut f32,
    /// Distance of two rows of C.
    pub c_row: usize,
    pub start: Start,
    pub exact: bool,
}

impl<A: Left, B: Right> Kernel for Gemm<A, B> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let panel = S::LANES * S::PANEL;
        let whole = if self.exact {
            self.n / S::LANES
        } else {
            self.n.div_ceil(S::LANES)
        };
        // SAFETY: columns, rows and steps stay inside the sizes that the fields promise.
        unsafe {
            let mut v = 0;
            while v < whole {
                let width = (whole - v).min(S::PANEL);
                let b = self.b.moved(v / S::PANEL * self.b_panel);
                let c = self.c.add(v * S::LANES);
                match width {
                    4 if S::PANEL >= 4 => self.column::<S, B, 4, false>(b, c, 0),
                    3 if S::PANEL >= 3 => self.column::<S, B, 3, false>(b, c, 0),
                    2 => self.column::<S, B, 2, false>(b, c, 0),
                    _ => self.column::<S, B, 1, false>(b, c, 0),
                }
                v += width;
            }
            if whole * S::LANES < self.n {
                let j = whole * S::LANES;
                let b = self.b.moved(j / panel * self.b_panel + j % panel);
                self.column::<S, B, 1, true>(b, self.c.add(j), self.n - j);
            }
        }
    }
}

impl<A: Left, B: Right> Gemm<A, B> {
    /// All rows of one panel. Tiles fill the registers; what is left over takes ever smaller ones.
    #[inline(always)]
    unsafe fn column<S: Simd, R: Right, const NV: usize, const PARTIAL: bool>(
        &self,
        b: R,
        c: *mut f32,
        tail: usize,
    ) {
        let mut i = 0;
        macro_rules! tiles {
            ($($rows:literal),*) => {{
                $(while self.m - i >= $rows {
                    // SAFETY: rows i.. i + $rows exist.
                    unsafe { self.tile::<S, R, $rows, NV, PARTIAL>(i, b, c, tail) };
                    i += $rows;
                })*
            }};
        }
        // 32 registers take 24 sums, 16 take 12
        if S::PANEL >= 4 {
            match NV {
                4 => tiles!(6, 4, 2, 1),
                3 => tiles!(8, 4, 2, 1),
                _ => tiles!(12, 6, 4, 2, 1),
            }
        } else {
            match NV {
                2 => tiles!(6, 4, 2, 1),
                _ => tiles!(8, 4, 2, 1),
            }
        }
    }

    /// `MR` rows by `NV` vectors of C.
    #[inline(always)]
    unsafe fn tile<S: Simd, R: Right, const MR: usize, const NV: usize, const PARTIAL: bool>(
        &self,
        i0: usize,
        b: R,
        c: *mut f32,
        tail: usize,
    ) {
        // SAFETY: rows i0..i0 + MR, NV vectors of columns (the last of `tail` lanes if PARTIAL) and k steps exist.
        unsafe {
            let zero = S::splat(0.0);
            let mut sums = [[zero; NV]; MR];
            let mut rows = [self.a.row(i0); MR];
            for i in 0..MR {
                rows[i] = self.a.row(i0 + i);
                for j in 0..NV {
                    let at = c.add((i0 + i) * self.c_row + j * S::LANES);
                    sums[i][j] = match self.start {
                        Start::Zero => zero,
                        Start::Accumulate if PARTIAL => S::load_partial(at, tail, zero),
                        Start::Accumulate => S::load(at),
                        Start::Rows(bias) => S::splat(*bias.add(i0 + i)),
                    };
                }
            }
            let step = self.a.step();
            for k in 0..self.k {
                let bk = b.step(k);
                let mut bv = [zero; NV];
                for j in 0..NV {
                    bv[j] = if PARTIAL {
                        S::load_partial(bk, tail, zero)
                    } else {
                        S::load(bk.add(j * S::LANES))
                    };
                }
                for i in 0..MR {
                    let av = S::splat(*rows[i].add(k * step));
                    for j in 0..NV {
                        sums[i][j] = S::fma(av, bv[j], sums[i][j]);
                    }
                }
            }
            for i in 0..MR {
                for j in 0..NV {
                    let at = c.add((i0 + i) * self.c_row + j * S::LANES);
                    if PARTIAL {
                        S::store_partial(at, tail, sums[i][j]);
                    } else {
                        S::store(at, sums[i][j]);
                    }
                }
            }
        }
    }
}
