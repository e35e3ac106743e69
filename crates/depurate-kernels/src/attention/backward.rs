//! The backward pass: the map is computed again, block by block.

use super::{KEYS, QUERIES, Shape, mixed, pack, products, unpack};
use crate::gemm::{Gemm, Start, Steps, Strided};
use crate::isa::{self, Kernel};
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::shape::check;
use crate::simd::{Simd, exp};
use crate::transpose::{Every, to_channels_last, to_planes};

/// What the forward pass was given and gave.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// The output.
    pub y: &'a [f32],
    /// Its logarithms of sums.
    pub lse: &'a [f32],
}

/// The gradients with respect to `q`, `k` and `v`, given that with respect to `y`. Heads run in parallel.
pub fn backward(
    saved: Saved<'_>,
    gy: &[f32],
    s: Shape,
    gq: &mut [f32],
    gk: &mut [f32],
    gv: &mut [f32],
) {
    s.check(saved.q, saved.k, saved.v, saved.y, saved.lse);
    check("gy", gy, s.q_len());
    check("gq", gq, s.q_len());
    check("gk", gk, s.k_len());
    check("gv", gv, s.k_len());
    let isa = isa::current();
    let (gq, gk, gv) = (Shared::write(gq), Shared::write(gk), Shared::write(gv));
    parallel::for_each(s.heads, |head| {
        isa.run(Head {
            saved,
            gy,
            s,
            head,
            gq,
            gk,
            gv,
        });
    });
}

/// One head. Tasks write disjoint heads.
struct Head<'a> {
    saved: Saved<'a>,
    gy: &'a [f32],
    s: Shape,
    head: usize,
    gq: Shared,
    gk: Shared,
    gv: Shared,
}

impl Kernel for Head<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (s, saved) = (self.s, self.saved);
        let padded = s.width.next_multiple_of(S::LANES);
        let mut scratch = scratch::take([
            s.width * QUERIES,
            s.width * QUERIES,
            padded * QUERIES,
            padded * QUERIES,
            s.width * KEYS,
            s.width * KEYS,
            KEYS * QUERIES,
            KEYS * QUERIES,
            padded * s.keys,
            padded * s.keys,
            s.width * QUERIES,
            QUERIES,
        ]);
        let [q, gy, q_rows, gy_rows, k, v, map, gmap, gk, gv, gq, delta] = scratch.slices();
        gk.fill(0.0);
        gv.fill(0.0);
        let (of_queries, of_keys) = (
            self.head * s.width * s.queries,
            self.head * s.width * s.keys,
        );
        for first in (0..s.queries).step_by(QUERIES) {
            let count = QUERIES.min(s.queries - first);
            gq.fill(0.0);
            // SAFETY: the head, its queries and its keys exist in the operands; the scratch holds blocks of QUERIES and
            // KEYS, and all keys of a head where the sums over queries go; the gradients' head is this task's.
            unsafe {
                let at = of_queries + first;
                let (from, of_y) = (saved.q.as_ptr().add(at), saved.y.as_ptr().add(at));
                let rows = Rows { s, count, padded };
                rows_of::<S>(from, s.scale, rows, q.as_mut_ptr(), q_rows.as_mut_ptr());
                let from = self.gy.as_ptr().add(at);
                rows_of::<S>(from, 1.0, rows, gy.as_mut_ptr(), gy_rows.as_mut_ptr());
                for i in (0..count).step_by(S::LANES) {
                    let mut sum = S::splat(0.0);
                    for c in 0..s.width {
                        let y = S::load_partial(
                            of_y.add(c * s.queries + i),
                            S::LANES.min(count - i),
                            S::splat(0.0),
                        );
                        sum = S::fma(y, S::load(gy.as_ptr().add(c * QUERIES + i)), sum);
                    }
                    S::store(delta.as_mut_ptr().add(i), sum);
                }
                for first_key in (0..s.keys).step_by(KEYS) {
                    let n = KEYS.min(s.keys - first_key);
                    let at = of_keys + first_key;
                    let (from, to) = (saved.k.as_ptr().add(at), map.as_mut_ptr());
                    products::<S>(from, s, n, k.as_mut_ptr(), q.as_ptr(), count, to);
                    let (from, to) = (saved.v.as_ptr().add(at), gmap.as_mut_ptr());
                    products::<S>(from, s, n, v.as_mut_ptr(), gy.as_ptr(), count, to);
                    let lse = saved.lse.as_ptr().add(self.head * s.queries + first);
                    for i in (0..count).step_by(S::LANES) {
                        let lse =
                            S::load_partial(lse.add(i), S::LANES.min(count - i), S::splat(0.0));
                        let delta = S::load(delta.as_ptr().add(i));
                        for row in 0..n {
                            let (p, g) = (
                                map.as_mut_ptr().add(row * QUERIES + i),
                                gmap.as_mut_ptr().add(row * QUERIES + i),
                            );
                            let share = exp::<S>(S::sub(S::load(p), lse)); // eq. (2)
                            S::store(p, share);
                            S::store(g, S::mul(share, S::sub(S::load(g), delta)));
                        }
                    }
                    let from = first_key * padded;
                    S::call(gathered::<S>(
                        map.as_ptr(),
                        gy_rows.as_ptr(),
                        padded,
                        n,
                        count,
                        gv.as_mut_ptr().add(from),
                    ));
                    S::call(gathered::<S>(
                        gmap.as_ptr(),
                        q_rows.as_ptr(),
                        padded,
                        n,
                        count,
                        gk.as_mut_ptr().add(from),
                    ));
                    S::call(mixed::<S>(
                        saved.k.as_ptr().add(at),
                        s,
                        n,
                        count,
                        gmap.as_ptr(),
                        gq.as_mut_ptr(),
                    ));
                }
                let to = self.gq.at(at);
                unpack::<S>(gq.as_ptr(), s.scale, s.width, count, to, s.queries);
            }
        }
        // SAFETY: as above.
        unsafe {
            to_planes::<S>(
                gk.as_ptr(),
                padded,
                s.width,
                s.keys,
                self.gk.at(of_keys),
                s.keys,
            );
            to_planes::<S>(
                gv.as_ptr(),
                padded,
                s.width,
                s.keys,
                self.gv.at(of_keys),
                s.keys,
            );
        }
    }
}

/// A block of queries on its way to rows.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub s: Shape,
    /// Queries of the block.
    pub count: usize,
    /// Floats of a row.
    pub padded: usize,
}

/// `factor` times a block of queries, to `planes [width][QUERIES]` and to `rows [count][padded]`.
///
/// # Safety
/// As for [`Simd`]; the queries exist, the targets hold a block.
#[inline(always)]
pub(super) unsafe fn rows_of<S: Simd>(
    from: *const f32,
    factor: f32,
    block: Rows,
    planes: *mut f32,
    rows: *mut f32,
) {
    let Rows { s, count, padded } = block;
    // SAFETY: as the caller promises.
    unsafe {
        pack::<S>(from, s.queries, s.width, count, factor, planes, QUERIES);
        to_channels_last::<S, _>(planes, QUERIES, s.width, count, rows, Every(padded));
    }
}

/// `to[k][c] += Σ_q map[k][q] rows[q][c]`, channels padded to whole vectors.
#[inline(always)]
pub(super) fn gathered<S: Simd>(
    map: *const f32,
    rows: *const f32,
    padded: usize,
    keys: usize,
    queries: usize,
    to: *mut f32,
) -> Gemm<Strided, Steps> {
    Gemm {
        m: keys,
        n: padded,
        k: queries,
        a: Strided {
            at: map,
            row: QUERIES,
            step: 1,
        },
        b: Steps {
            at: rows,
            step: padded,
        },
        b_panel: S::LANES * S::PANEL,
        c: to,
        c_row: padded,
        start: Start::Accumulate,
        exact: false,
    }
}
