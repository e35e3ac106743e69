//! Plain f64 references, a few lines each, and the yardstick.

use depurate_kernels::{ConvShape, Isa};
use proptest::test_runner::{Config, RngSeed};

/// Repeatable values, uniform with unit variance.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 12f32.sqrt()
        })
        .collect()
}

/// RMS of the difference over RMS of the reference.
pub fn relative_rms(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got
        .iter()
        .zip(want)
        .map(|(g, w)| (f64::from(*g) - w).powi(2))
        .sum();
    let size: f64 = want.iter().map(|w| w * w).sum();
    (error / size.max(1e-30)).sqrt()
}

#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    let error = relative_rms(got, want);
    assert!(
        error <= tolerance,
        "{what}: relative RMS error {error:.2e} is above {tolerance:.0e}"
    );
}

/// `count` cases, the same in every run: where a gradient that is a sum over pixels happens to cancel to nearly 0, an error
/// relative to it says nothing about the kernel, and drawn anew in every run such a shape comes up now and then.
pub fn cases(count: u32) -> Config {
    Config {
        cases: count,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0),
        ..Config::default()
    }
}

/// Runs `f` once on every instruction set of this machine.
pub fn on_each_isa(f: impl Fn(Isa)) {
    for isa in Isa::available() {
        depurate_kernels::with_isa(isa, || f(isa));
    }
}

/// The gradient of `Σ f(x) gy` by central differences.
pub fn differences(x: &[f64], gy: &[f32], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let h = 1e-5;
    let value = |x: &[f64]| {
        f(x).iter()
            .zip(gy)
            .map(|(y, g)| y * f64::from(*g))
            .sum::<f64>()
    };
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let center = x[i];
            x[i] = center + h;
            let above = value(&x);
            x[i] = center - h;
            let below = value(&x);
            x[i] = center;
            (above - below) / (2.0 * h)
        })
        .collect()
}

/// In f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// A convolution of any kernel size, stride and padding, as its definition says.
#[derive(Clone, Copy, Debug)]
pub struct Plain {
    pub s: ConvShape,
    pub kernel: usize,
    pub stride: usize,
    pub before: usize,
    pub out: (usize, usize),
}

impl Plain {
    pub fn x_len(&self) -> usize {
        self.s.input_len()
    }
    pub fn w_len(&self) -> usize {
        self.s.c_out * self.s.c_in * self.kernel * self.kernel
    }
    pub fn y_len(&self) -> usize {
        self.s.batch * self.s.c_out * self.out.0 * self.out.1
    }

    /// Calls `f(x index, w index, y index)` for every product.
    fn products(&self, mut f: impl FnMut(usize, usize, usize)) {
        let s = self.s;
        for n in 0..s.batch {
            for co in 0..s.c_out {
                for oy in 0..self.out.0 {
                    for ox in 0..self.out.1 {
                        let yi = ((n * s.c_out + co) * self.out.0 + oy) * self.out.1 + ox;
                        for ci in 0..s.c_in {
                            for ky in 0..self.kernel {
                                for kx in 0..self.kernel {
                                    let y = (oy * self.stride + ky).wrapping_sub(self.before);
                                    let x = (ox * self.stride + kx).wrapping_sub(self.before);
                                    if y < s.height && x < s.width {
                                        let xi = ((n * s.c_in + ci) * s.height + y) * s.width + x;
                                        let wi = ((co * s.c_in + ci) * self.kernel + ky)
                                            * self.kernel
                                            + kx;
                                        f(xi, wi, yi);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    pub fn forward(&self, x: &[f32], w: &[f32], bias: &[f32]) -> Vec<f64> {
        let plane = self.out.0 * self.out.1;
        let mut y: Vec<f64> = (0..self.y_len())
            .map(|i| f64::from(bias[i / plane % self.s.c_out]))
            .collect();
        self.products(|xi, wi, yi| y[yi] += f64::from(x[xi]) * f64::from(w[wi]));
        y
    }
    pub fn input_grad(&self, gy: &[f32], w: &[f32]) -> Vec<f64> {
        let mut gx = vec![0.0; self.x_len()];
        self.products(|xi, wi, yi| gx[xi] += f64::from(gy[yi]) * f64::from(w[wi]));
        gx
    }
    pub fn weight_grad(&self, x: &[f32], gy: &[f32]) -> Vec<f64> {
        let mut gw = vec![0.0; self.w_len()];
        self.products(|xi, wi, yi| gw[wi] += f64::from(gy[yi]) * f64::from(x[xi]));
        gw
    }
}
