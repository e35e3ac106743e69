//! Every kernel on every instruction set against a plain reference in f64.
#![allow(missing_docs)]

mod attention;
mod convolution;
mod layers;
mod passes;
mod reference;
