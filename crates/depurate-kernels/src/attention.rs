//! Scaled dot-product attention: [`forward`] never forms its map, [`map()`] and [`mix`] do.
//!
//! Operands are planar: `q [heads][width][queries]`, `k` and `v [heads][width][keys]`, `y` as `q`; heads of all images
//! one after the other. With the map `P[k][q]`:
//!
//! ```text
//! S[k][q] = scale Σ_c k[c][k] q[c][q]                                      (1)
//! P[k][q] = exp(S[k][q] - lse[q]),  lse[q] = ln Σ_k exp S[k][q]            (2)
//! y[c][q] = Σ_k v[c][k] P[k][q]                                            (3)
//! ```
//!
//! Without the map, the forward pass takes keys a block at a time with a running maximum and sum, and the backward pass
//! computes (1) and (2) again from the saved `lse`:
//!
//! ```text
//! gv[c][k] = Σ_q gy[c][q] P[k][q]
//! gS[k][q] = P[k][q] (Σ_c v[c][k] gy[c][q] - delta[q]),  delta[q] = Σ_c gy[c][q] y[c][q]
//! gq[c][q] = scale Σ_k k[c][k] gS[k][q],  gk[c][k] = scale Σ_q q[c][q] gS[k][q]
//! ```
//!
//! Vectors run along queries, so that maximum and sum need no work across lanes.

mod backward;
mod mapped;
mod mapped_backward;

use crate::gemm::{Gemm, Start, Steps, Strided};
use crate::isa::{self, Kernel};
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::shape::check;
use crate::simd::{Simd, exp};

pub use backward::{Saved, backward};
pub use mapped::{map, mix};
pub use mapped_backward::{map_grad, mix_grad};

/// Queries of a task: a row of the scratch.
const QUERIES: usize = 64;
/// Keys of a block: with it, map and operands stay in the first two levels of cache.
const KEYS: usize = 128;

/// Sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Heads of all images.
    pub heads: usize,
    /// Channels of a head.
    pub width: usize,
    /// Queries.
    pub queries: usize,
    /// Keys.
    pub keys: usize,
    /// Factor of the products, usually `width^-1/2`.
    pub scale: f32,
}

impl Shape {
    fn q_len(&self) -> usize {
        self.heads * self.width * self.queries
    }
    fn k_len(&self) -> usize {
        self.heads * self.width * self.keys
    }
    fn map_len(&self) -> usize {
        self.heads * self.keys * self.queries
    }
    /// Blocks of queries of a head.
    fn blocks(&self) -> usize {
        self.queries.div_ceil(QUERIES)
    }
    /// Head, first query and number of queries of a task.
    fn block(&self, task: usize) -> (usize, usize, usize) {
        let first = task % self.blocks() * QUERIES;
        (
            task / self.blocks(),
            first,
            QUERIES.min(self.queries - first),
        )
    }
    /// Offset of a query of a head in a map.
    fn of_map(&self, head: usize, query: usize) -> usize {
        head * self.keys * self.queries + query
    }
    #[track_caller]
    fn check(&self, q: &[f32], k: &[f32], v: &[f32], y: &[f32], lse: &[f32]) {
        self.check_operands(q, k, v, y);
        check("lse", lse, self.heads * self.queries);
    }
    #[track_caller]
    fn check_operands(&self, q: &[f32], k: &[f32], v: &[f32], y: &[f32]) {
        check("q", q, self.q_len());
        check("k", k, self.k_len());
        check("v", v, self.k_len());
        check("y", y, self.q_len());
        assert!(self.keys > 0, "there is no key to attend to");
    }
}

/// Eq. (3) into `y`, and `lse [heads][queries]` of eq. (2), which the backward pass needs.
pub fn forward(q: &[f32], k: &[f32], v: &[f32], s: Shape, y: &mut [f32], lse: &mut [f32]) {
    s.check(q, k, v, y, lse);
    let isa = isa::current();
    let (y, lse) = (Shared::write(y), Shared::write(lse));
    parallel::for_each(s.heads * s.blocks(), |task| {
        let (head, first, count) = s.block(task);
        isa.run(Block {
            q,
            k,
            v,
            s,
            head,
            first,
            count,
            y,
            lse,
        });
    });
}

/// Some queries of one head. Tasks write disjoint columns of `y` and `lse`.
struct Block<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    s: Shape,
    head: usize,
    first: usize,
    count: usize,
    y: Shared,
    lse: Shared,
}

impl Kernel for Block<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (s, count) = (self.s, self.count);
        let mut scratch = scratch::take([
            s.width * QUERIES,
            s.width * KEYS,
            KEYS * QUERIES,
            s.width * QUERIES,
            QUERIES,
            QUERIES,
        ]);
        let [q, k, map, sums, most, total] = scratch.slices();
        sums.fill(0.0);
        most.fill(f32::NEG_INFINITY);
        total.fill(0.0);
        // SAFETY: the head, its queries and its keys exist in the operands; the scratch holds blocks of QUERIES and KEYS;
        // the columns of y and lse are this task's.
        unsafe {
            let at = self.head * s.width * s.queries + self.first;
            pack::<S>(
                self.q.as_ptr().add(at),
                s.queries,
                s.width,
                count,
                s.scale,
                q.as_mut_ptr(),
                QUERIES,
            );
            let keys = self.head * s.width * s.keys;
            for first in (0..s.keys).step_by(KEYS) {
                let n = KEYS.min(s.keys - first);
                let (from, to) = (self.k.as_ptr().add(keys + first), map.as_mut_ptr());
                products::<S>(from, s, n, k.as_mut_ptr(), q.as_ptr(), count, to); // eq. (1)
                for i in (0..count).step_by(S::LANES) {
                    let before = S::load(most.as_ptr().add(i));
                    let mut largest = before;
                    for row in 0..n {
                        largest = S::max(S::load(map.as_ptr().add(row * QUERIES + i)), largest);
                    }
                    let mut sum = S::splat(0.0);
                    for row in 0..n {
                        let at = map.as_mut_ptr().add(row * QUERIES + i);
                        let e = exp::<S>(S::sub(S::load(at), largest));
                        sum = S::add(sum, e);
                        S::store(at, e);
                    }
                    let shrink = exp::<S>(S::sub(before, largest));
                    S::store(most.as_mut_ptr().add(i), largest);
                    let t = total.as_mut_ptr().add(i);
                    S::store(t, S::fma(S::load(t), shrink, sum));
                    for c in 0..s.width {
                        let at = sums.as_mut_ptr().add(c * QUERIES + i);
                        S::store(at, S::mul(S::load(at), shrink));
                    }
                }
                S::call(mixed::<S>(
                    self.v.as_ptr().add(keys + first),
                    s,
                    n,
                    count,
                    map.as_ptr(),
                    sums.as_mut_ptr(),
                )); // eq. (3)
            }
            for i in (0..count).step_by(S::LANES) {
                let lanes = S::LANES.min(count - i);
                let share = S::div(S::splat(1.0), S::load(total.as_ptr().add(i)));
                for c in 0..s.width {
                    let y = S::mul(S::load(sums.as_ptr().add(c * QUERIES + i)), share);
                    S::store_partial(self.y.at(at + c * s.queries + i), lanes, y);
                }
            }
            for i in 0..count {
                *self.lse.at(self.head * s.queries + self.first + i) = most[i] + total[i].ln();
            }
        }
    }
}

/// `count` columns of `rows` rows, times `factor`, to rows `pitch` apart; the last vector is filled up with zeros.
///
/// # Safety
/// As for [`Simd`]; the source has the columns, the target `rows` rows of whole vectors.
#[inline(always)]
unsafe fn pack<S: Simd>(
    from: *const f32,
    row: usize,
    rows: usize,
    count: usize,
    factor: f32,
    to: *mut f32,
    pitch: usize,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let factor = S::splat(factor);
        for c in 0..rows {
            for i in (0..count).step_by(S::LANES) {
                let v = S::load_partial(
                    from.add(c * row + i),
                    S::LANES.min(count - i),
                    S::splat(0.0),
                );
                S::store(to.add(c * pitch + i), S::mul(v, factor));
            }
        }
    }
}

/// `factor` times `rows` rows of a block, QUERIES apart, to `count` columns of rows `row` apart.
///
/// # Safety
/// As for [`Simd`]; the source has the rows, the target the columns.
#[inline(always)]
unsafe fn unpack<S: Simd>(
    from: *const f32,
    factor: f32,
    rows: usize,
    count: usize,
    to: *mut f32,
    row: usize,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let factor = S::splat(factor);
        for r in 0..rows {
            for i in (0..count).step_by(S::LANES) {
                let v = S::mul(S::load(from.add(r * QUERIES + i)), factor);
                S::store_partial(to.add(r * row + i), S::LANES.min(count - i), v);
            }
        }
    }
}

/// `to[k][q] = Σ_c planes[c][k] b[c][q]` for `keys` columns of planar keys or values, which are packed into `packed` first;
/// rows of `b` and `to` are QUERIES apart.
///
/// # Safety
/// As for [`Simd`]; the columns exist, `packed` holds `s.width` rows of KEYS, `to` as many rows as there are keys.
#[inline(always)]
unsafe fn products<S: Simd>(
    planes: *const f32,
    s: Shape,
    keys: usize,
    packed: *mut f32,
    b: *const f32,
    queries: usize,
    to: *mut f32,
) {
    // SAFETY: as the caller promises.
    unsafe {
        pack::<S>(planes, s.keys, s.width, keys, 1.0, packed, KEYS);
        S::call(Gemm {
            m: keys,
            n: queries,
            k: s.width,
            a: Strided {
                at: packed,
                row: 1,
                step: KEYS,
            },
            b: Steps {
                at: b,
                step: QUERIES,
            },
            b_panel: S::LANES * S::PANEL,
            c: to,
            c_row: QUERIES,
            start: Start::Zero,
            exact: false,
        });
    }
}

/// `to[c][q] += Σ_k a[c][k] map[k][q]` for planar `a`.
#[inline(always)]
fn mixed<S: Simd>(
    a: *const f32,
    s: Shape,
    keys: usize,
    queries: usize,
    map: *const f32,
    to: *mut f32,
) -> Gemm<Strided, Steps> {
    Gemm {
        m: s.width,
        n: queries,
        k: keys,
        a: Strided {
            at: a,
            row: s.keys,
            step: 1,
        },
        b: Steps {
            at: map,
            step: QUERIES,
        },
        b_panel: S::LANES * S::PANEL,
        c: to,
        c_row: QUERIES,
        start: Start::Accumulate,
        exact: false,
    }
}
