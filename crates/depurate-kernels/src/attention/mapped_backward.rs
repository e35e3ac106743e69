//! The gradients of the two steps with the map between them:
//!
//! ```text
//! gv[c][k] = Σ_q gy[c][q] P[k][q],   gP[k][q] = Σ_c v[c][k] gy[c][q]
//! gS[k][q] = P[k][q] (gP[k][q] - Σ_j P[j][q] gP[j][q])
//! gq[c][q] = scale Σ_k k[c][k] gS[k][q],   gk[c][k] = scale Σ_q q[c][q] gS[k][q]
//! ```

use super::backward::{Rows, gathered, rows_of};
use super::{KEYS, QUERIES, Shape, mixed, pack, products, unpack};
use crate::isa::{self, Kernel};
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::shape::check;
use crate::simd::Simd;
use crate::transpose::to_planes;

/// The gradients of [`super::mix`] with respect to map and values. Heads run in parallel.
pub fn mix_grad(map: &[f32], v: &[f32], gy: &[f32], s: Shape, gmap: &mut [f32], gv: &mut [f32]) {
    check("map", map, s.map_len());
    check("gmap", gmap, s.map_len());
    s.check_operands(gy, v, gv, gy);
    let isa = isa::current();
    let (gmap, gv) = (Shared::write(gmap), Shared::write(gv));
    parallel::for_each(s.heads, |head| {
        isa.run(MixGradient {
            map,
            v,
            gy,
            s,
            head,
            gmap,
            gv,
        });
    });
}

/// The gradients of [`super::map()`] with respect to queries and keys. Heads run in parallel.
pub fn map_grad(
    (q, k, map): (&[f32], &[f32], &[f32]),
    gmap: &[f32],
    s: Shape,
    gq: &mut [f32],
    gk: &mut [f32],
) {
    check("map", map, s.map_len());
    check("gmap", gmap, s.map_len());
    s.check_operands(q, k, gk, gq);
    let isa = isa::current();
    let (gq, gk) = (Shared::write(gq), Shared::write(gk));
    parallel::for_each(s.heads, |head| {
        isa.run(MapGradient {
            q,
            k,
            map,
            gmap,
            s,
            head,
            gq,
            gk,
        });
    });
}

/// One head. Tasks write disjoint heads.
struct MixGradient<'a> {
    map: &'a [f32],
    v: &'a [f32],
    gy: &'a [f32],
    s: Shape,
    head: usize,
    gmap: Shared,
    gv: Shared,
}

impl Kernel for MixGradient<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let s = self.s;
        let padded = s.width.next_multiple_of(S::LANES);
        let mut scratch = scratch::take([
            s.width * QUERIES,
            padded * QUERIES,
            s.width * KEYS,
            s.keys * QUERIES,
            padded * s.keys,
        ]);
        let [gy, gy_rows, v, map, gv] = scratch.slices();
        gv.fill(0.0);
        let of_keys = self.head * s.width * s.keys;
        for first in (0..s.queries).step_by(QUERIES) {
            let count = QUERIES.min(s.queries - first);
            // SAFETY: the head, its queries and its keys exist in the operands; the scratch holds a block of QUERIES with all
            // keys, and all keys where the sums over queries go; the gradients' head is this task's.
            unsafe {
                let at = self.head * s.width * s.queries + first;
                let rows = Rows { s, count, padded };
                let to = gy.as_mut_ptr();
                rows_of::<S>(
                    self.gy.as_ptr().add(at),
                    1.0,
                    rows,
                    to,
                    gy_rows.as_mut_ptr(),
                );
                let of_map = s.of_map(self.head, first);
                let from = self.map.as_ptr().add(of_map);
                pack::<S>(
                    from,
                    s.queries,
                    s.keys,
                    count,
                    1.0,
                    map.as_mut_ptr(),
                    QUERIES,
                );
                let (from, rows, to) = (map.as_ptr(), gy_rows.as_ptr(), gv.as_mut_ptr());
                S::call(gathered::<S>(from, rows, padded, s.keys, count, to));
                for first_key in (0..s.keys).step_by(KEYS) {
                    let n = KEYS.min(s.keys - first_key);
                    let from = self.v.as_ptr().add(of_keys + first_key);
                    let to = map.as_mut_ptr().add(first_key * QUERIES);
                    products::<S>(from, s, n, v.as_mut_ptr(), gy.as_ptr(), count, to);
                }
                let to = self.gmap.at(of_map);
                unpack::<S>(map.as_ptr(), 1.0, s.keys, count, to, s.queries);
            }
        }
        // SAFETY: as above.
        unsafe {
            let to = self.gv.at(of_keys);
            to_planes::<S>(gv.as_ptr(), padded, s.width, s.keys, to, s.keys);
        }
    }
}

/// One head. Tasks write disjoint heads.
struct MapGradient<'a> {
    q: &'a [f32],
    k: &'a [f32],
    map: &'a [f32],
    gmap: &'a [f32],
    s: Shape,
    head: usize,
    gq: Shared,
    gk: Shared,
}

impl Kernel for MapGradient<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let s = self.s;
        let padded = s.width.next_multiple_of(S::LANES);
        let mut scratch = scratch::take([
            s.width * QUERIES,
            padded * QUERIES,
            s.keys * QUERIES,
            padded * s.keys,
        ]);
        let [planes, q_rows, scores, gk] = scratch.slices();
        gk.fill(0.0);
        let of_keys = self.head * s.width * s.keys;
        for first in (0..s.queries).step_by(QUERIES) {
            let count = QUERIES.min(s.queries - first);
            // SAFETY: as in [`MixGradient`].
            unsafe {
                let at = self.head * s.width * s.queries + first;
                let rows = Rows { s, count, padded };
                let (from, to) = (self.q.as_ptr().add(at), planes.as_mut_ptr());
                rows_of::<S>(from, s.scale, rows, to, q_rows.as_mut_ptr());
                self.scores::<S>(first, count, scores.as_mut_ptr());
                let (from, rows, to) = (scores.as_ptr(), q_rows.as_ptr(), gk.as_mut_ptr());
                S::call(gathered::<S>(from, rows, padded, s.keys, count, to));
                planes.fill(0.0);
                let (keys, to) = (self.k.as_ptr().add(of_keys), planes.as_mut_ptr());
                S::call(mixed::<S>(keys, s, s.keys, count, from, to));
                let to = self.gq.at(at);
                unpack::<S>(planes.as_ptr(), s.scale, s.width, count, to, s.queries);
            }
        }
        // SAFETY: as above.
        unsafe {
            let to = self.gk.at(of_keys);
            to_planes::<S>(gk.as_ptr(), padded, s.width, s.keys, to, s.keys);
        }
    }
}

impl MapGradient<'_> {
    /// `gS` of a block of queries.
    #[inline(always)]
    unsafe fn scores<S: Simd>(&self, first: usize, count: usize, to: *mut f32) {
        let s = self.s;
        let at = s.of_map(self.head, first);
        // SAFETY: as in `run`.
        unsafe {
            for i in (0..count).step_by(S::LANES) {
                let (lanes, zero) = (S::LANES.min(count - i), S::splat(0.0));
                let (map, gmap) = (
                    self.map.as_ptr().add(at + i),
                    self.gmap.as_ptr().add(at + i),
                );
                let mut dot = zero;
                for row in 0..s.keys {
                    let p = S::load_partial(map.add(row * s.queries), lanes, zero);
                    let g = S::load_partial(gmap.add(row * s.queries), lanes, zero);
                    dot = S::fma(p, g, dot);
                }
                for row in 0..s.keys {
                    let p = S::load_partial(map.add(row * s.queries), lanes, zero);
                    let g = S::load_partial(gmap.add(row * s.queries), lanes, zero);
                    S::store(to.add(row * QUERIES + i), S::mul(p, S::sub(g, dot)));
                }
            }
        }
    }
}
