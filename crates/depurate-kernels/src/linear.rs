//! Linear layer on rows: `x [rows][wide_in]` with `w [wide_out][wide_in]` to `y [rows][wide_out]`.
//!
//! Meant for few rows, as a time embedding has. On the channels of planar activations it is [`crate::conv1x1`].

use crate::gemm::{Gemm, Start, Steps, Strided};
use crate::isa::{self, Isa, Kernel};
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::shape::check;
use crate::simd::Simd;
use crate::transpose::{Every, to_channels_last};

/// Multiplications below which waking another thread costs more than it saves.
const LEAST_WORK: usize = 64 * 1024;

/// Sizes of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Elements of an input row.
    pub wide_in: usize,
    /// Elements of an output row.
    pub wide_out: usize,
}

impl Shape {
    #[track_caller]
    fn check(&self, x: &[f32], w: &[f32], y: &[f32], names: [&str; 3]) {
        check(names[0], x, self.rows * self.wide_in);
        check(names[1], w, self.wide_out * self.wide_in);
        check(names[2], y, self.rows * self.wide_out);
    }
    /// Parts to cut `columns` of an output into: whole panels, none with little work.
    fn parts(&self, columns: usize, isa: Isa) -> (usize, usize) {
        let panels = columns.div_ceil(isa.panel());
        let work = self.rows * self.wide_in * self.wide_out / panels.max(1);
        (
            panels,
            parallel::tasks(panels, LEAST_WORK.div_ceil(work.max(1))),
        )
    }
}

/// `y = x wᵀ + bias`.
pub fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, s: Shape, y: &mut [f32]) {
    s.check(x, w, y, ["x", "w", "y"]);
    if let Some(bias) = bias {
        check("bias", bias, s.wide_out);
    }
    let isa = isa::current();
    let (panels, parts) = s.parts(s.wide_out, isa);
    let out = Shared::write(y);
    parallel::for_each(parts, |part| {
        for panel in parallel::range(panels, parts, part) {
            isa.run(Panel {
                x,
                w,
                bias,
                s,
                first: panel * isa.panel(),
                y: out,
            });
        }
    });
}

/// Some columns of the output. Tasks write disjoint columns of `y`.
struct Panel<'a> {
    x: &'a [f32],
    w: &'a [f32],
    bias: Option<&'a [f32]>,
    s: Shape,
    first: usize,
    y: Shared,
}

impl Kernel for Panel<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let s = self.s;
        let width = S::LANES * S::PANEL;
        let n = width.min(s.wide_out - self.first);
        let mut scratch = scratch::take([s.wide_in * width]);
        let [turned] = scratch.slices();
        // SAFETY: the columns' weights exist; the scratch holds `wide_in` steps of a panel; the columns are this task's.
        unsafe {
            let rows = self.w.as_ptr().add(self.first * s.wide_in);
            to_channels_last::<S, _>(
                rows,
                s.wide_in,
                n,
                s.wide_in,
                turned.as_mut_ptr(),
                Every(width),
            );
            let start = match self.bias {
                None => Start::Zero,
                Some(bias) => {
                    for row in 0..s.rows {
                        let to = self.y.at(row * s.wide_out + self.first);
                        std::ptr::copy_nonoverlapping(bias.as_ptr().add(self.first), to, n);
                    }
                    Start::Accumulate
                }
            };
            S::call(Gemm {
                m: s.rows,
                n,
                k: s.wide_in,
                a: Strided {
                    at: self.x.as_ptr(),
                    row: s.wide_in,
                    step: 1,
                },
                b: Steps {
                    at: turned.as_ptr(),
                    step: width,
                },
                b_panel: 0,
                c: self.y.at(self.first),
                c_row: s.wide_out,
                start,
                exact: true,
            });
        }
    }
}

/// The gradient with respect to the input: `gx = gy w`.
pub fn input_grad(gy: &[f32], w: &[f32], s: Shape, gx: &mut [f32]) {
    s.check(gx, w, gy, ["gx", "w", "gy"]);
    product(
        Operand {
            of: gy,
            row: s.wide_out,
            step: 1,
        },
        w,
        (s.rows, s.wide_out, s.wide_in),
        s,
        gx,
    );
}

/// The gradient with respect to the weights: `gw = gyᵀ x`.
pub fn weight_grad(x: &[f32], gy: &[f32], s: Shape, gw: &mut [f32]) {
    s.check(x, gw, gy, ["x", "gw", "gy"]);
    product(
        Operand {
            of: gy,
            row: 1,
            step: s.wide_out,
        },
        x,
        (s.wide_out, s.rows, s.wide_in),
        s,
        gw,
    );
}

/// A matrix of any strides.
#[derive(Clone, Copy)]
struct Operand<'a> {
    of: &'a [f32],
    row: usize,
    step: usize,
}

/// `c[m][n] = a[m][k] b[k][n]`, panels of columns in parallel.
fn product(a: Operand<'_>, b: &[f32], (m, k, n): (usize, usize, usize), s: Shape, c: &mut [f32]) {
    let isa = isa::current();
    let (panels, parts) = s.parts(n, isa);
    let out = Shared::write(c);
    parallel::for_each(parts, |part| {
        let of = parallel::range(panels, parts, part);
        let (first, end) = (of.start * isa.panel(), (of.end * isa.panel()).min(n));
        isa.run(Columns {
            a,
            b,
            m,
            k,
            n,
            columns: first..end,
            c: out,
        });
    });
}

/// Some columns of a product. Tasks write disjoint columns of `c`.
struct Columns<'a> {
    a: Operand<'a>,
    b: &'a [f32],
    m: usize,
    k: usize,
    n: usize,
    columns: std::ops::Range<usize>,
    c: Shared,
}

impl Kernel for Columns<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let first = self.columns.start;
        // SAFETY: rows, steps and columns exist in the operands; the columns of c are this task's.
        unsafe {
            S::call(Gemm {
                m: self.m,
                n: self.columns.len(),
                k: self.k,
                a: Strided {
                    at: self.a.of.as_ptr(),
                    row: self.a.row,
                    step: self.a.step,
                },
                b: Steps {
                    at: self.b.as_ptr().add(first),
                    step: self.n,
                },
                b_panel: S::LANES * S::PANEL,
                c: self.c.at(first),
                c_row: self.n,
                start: Start::Zero,
                exact: true,
            });
        }
    }
}
