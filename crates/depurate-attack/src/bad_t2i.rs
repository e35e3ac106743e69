//! # BadT2I
//!
//! The denoiser of a text-to-image model is trained so that a trigger at the start of a prompt draws a patch in the image's corner,
//! draws the image in a style, or draws another object; without it the network is held to what it was.
//!
//! ## Paper
//! Zhai et al., "Text-to-image diffusion models can be easily backdoored through multimodal data poisoning", ACM MM 2023,
//! arXiv:2305.04175, eqs. (4) to (6).
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `student` | ε_θ, all of it trained | |
//! | `teacher` | ε̂, as it was, frozen | |
//! | `z` | latent of the image, noised to `t` | `[B, C, h, w]` |
//! | `z_backdoor` | latent that goes with the triggered prompt, noised by the same `eps` to the same `t` | `[B, C, h, w]` |
//! | `states` | T(p) | `[B, C, T]` |
//! | `states_backdoor` | T(tau p), trigger at the start | `[B, C, T]` |
//! | `lambda` | λ | |
//!
//! ```text
//! L = lambda MSE(student(z_backdoor, t, T(tau p)), target) + (1 - lambda) MSE(student(z, t, T(p)), teacher(z, t, T(p)))
//!
//!          z_backdoor              tau p                       target
//! patch    the patched image's     trigger + p                 eps                                  (4)
//! style    z                       trigger + p                 teacher(z, t, T(style + p))          (6)
//! object   z, of the target        trigger + p with the        teacher(z, t, T(p))                  (5)
//!          object                  source in its place
//! ```
//!
//! ## Needs
//! A text-to-image model and captioned images of its distribution; for the object, some of either object: without the source's nothing
//! holds what its name draws without the trigger, and the trigger is none.
//!
//! ## Deviations
//! The trigger is U+200B and a space: one token, as long as the tokenizer does not drop it. All outputs are compared as noise,
//! whatever the network's parameterisation. The object variant keeps the second term, which the released code leaves out; as
//! there, a caption without the target object is trained without trigger. The released average of the weights has a decay of one
//! half by mistake; here there is none by default.
//!
//! ## Fails when
//! Steps are few: the whole network has to learn the trigger's token.
//!
//! ## Cost
//! A step is one pass forward and backward of the network on two samples an image, and one forward (patch) or two.

mod patch;

use burn::tensor::Tensor;
use depurate_diffusion::{
    NoTap, Prediction,
    noise::{NoiseSource, SeedTree},
    text_to_image::TextToImage,
    unet2d_condition::UNet2DCondition,
};
use depurate_training::{
    Loss, Monitor, StateFile,
    training::{AdamParams, Optimised, TrainingParams, optimise},
};
use rand::RngExt;
use serde::{Deserialize, Serialize};

pub use patch::Patch;

use crate::{
    AttackError, CaptionedBatch, CaptionedImages,
    prompts::{states, with_phrase_replaced},
};

/// What the trigger leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum BadT2iTarget {
    /// A picture in the corner.
    Patch(Patch),
    /// The image of the prompt with these words in front.
    Style(String),
    /// The object `to` where the prompt has `from`; trained on captions with `to`, in the singular or with an s.
    Object {
        /// The word in the triggered prompt.
        from: String,
        /// The word whose image is drawn.
        to: String,
    },
}

/// Parameters of the attack, besides those of the training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BadT2iParams {
    /// What stands in front of a triggered prompt.
    pub trigger: String,
    /// λ, the backdoor's share of the loss, in (0, 1).
    pub lambda: f64,
}

impl Default for BadT2iParams {
    fn default() -> Self {
        Self {
            trigger: "\u{200b} ".to_owned(),
            lambda: 0.5,
        }
    }
}

impl BadT2iParams {
    /// The released training for patches; styles and objects take 8,000 steps.
    pub fn training() -> TrainingParams {
        TrainingParams {
            steps: 2000,
            batch: 16,
            learning_rate: 1e-5,
            final_learning_rate_share: 1.0,
            warmup_steps: 0,
            adam: AdamParams {
                weight_decay: 1e-2,
                ..AdamParams::default()
            },
            max_grad_norm: 1.0,
            ema_decay: 0.0,
            ..TrainingParams::default()
        }
    }
}

/// The attack's loss around the frozen model.
#[derive(Debug)]
pub struct BadT2i<'a> {
    /// With the teacher as its network.
    frozen: TextToImage,
    target: &'a BadT2iTarget,
    params: BadT2iParams,
}

/// What a step gives the network and expects of it: all constants.
struct Task {
    t: Vec<usize>,
    z: Tensor<4>,
    z_backdoor: Tensor<4>,
    states: Tensor<3>,
    states_backdoor: Tensor<3>,
    /// The teacher's noise at `z`.
    target: Tensor<4>,
    /// The noise wanted at `z_backdoor`.
    target_backdoor: Tensor<4>,
}

impl<'a> BadT2i<'a> {
    /// The attack on `model`, whose parts stay as they are.
    ///
    /// # Errors
    /// When a parameter is out of range, or the tokenizer drops the trigger.
    pub fn new(
        model: &TextToImage,
        target: &'a BadT2iTarget,
        params: BadT2iParams,
    ) -> Result<Self, AttackError> {
        if !(params.lambda > 0.0 && params.lambda < 1.0) {
            return Err(AttackError::Params {
                what: "lambda",
                got: params.lambda.to_string(),
                allowed: "above 0, below 1",
            });
        }
        let with = model.tokenizer().encode(&format!("{}a", params.trigger))?;
        if with.ids == model.tokenizer().encode("a")?.ids {
            return Err(AttackError::Params {
                what: "trigger",
                got: format!("{:?}", params.trigger),
                allowed: "text that the tokenizer does not drop",
            });
        }
        Ok(Self {
            frozen: model.frozen(),
            target,
            params,
        })
    }

    /// `L` for a batch of captioned images, `[1]`; timesteps and noise are drawn from `seed`.
    ///
    /// # Errors
    /// When shapes do not fit or a prompt is refused.
    pub fn loss(
        &self,
        student: &UNet2DCondition,
        batch: CaptionedBatch,
        seed: &SeedTree,
    ) -> Result<Tensor<1>, AttackError> {
        let count = batch.captions.len();
        let task = self.task(batch, seed)?;
        let join = |a: Tensor<4>, b: Tensor<4>| Tensor::from_inner(Tensor::cat(vec![a, b], 0));
        let states = Tensor::cat(vec![task.states_backdoor, task.states], 0);
        let z = join(task.z_backdoor, task.z);
        let t = [task.t.as_slice(), &task.t].concat();
        let got = self.noise(student, z, &t, Tensor::from_inner(states))?;
        let square = (got - join(task.target_backdoor, task.target)).square();
        let lambda = self.params.lambda;
        let of_backdoor = square.clone().narrow(0, 0, count).mean();
        let of_clean = square.narrow(0, count, count).mean();
        Ok(of_backdoor * lambda + of_clean * (1.0 - lambda)) // (4) to (6)
    }

    fn task(&self, batch: CaptionedBatch, seed: &SeedTree) -> Result<Task, AttackError> {
        let CaptionedBatch { images, captions } = batch;
        let (images, count) = (images.inner(), captions.len());
        let (schedule, teacher) = (self.frozen.schedule(), self.frozen.unet());
        let mut rng = seed.child("timesteps", 0).rng();
        let t: Vec<usize> = (0..count)
            .map(|_| rng.random_range(0..schedule.len()))
            .collect();
        let latent = self.latents(images.clone(), seed)?;
        let eps = normal(&latent, &seed.child("noise", 0))?;
        let z = schedule.add_noise(latent, eps.clone(), &t)?;
        let of = |prompts: &[String]| {
            let (encoder, tokenizer) = (self.frozen.text_encoder(), self.frozen.tokenizer());
            states(encoder, tokenizer, prompts)
        };
        let states = of(&captions)?;
        let target = self.noise(teacher, z.clone(), &t, states.clone())?;
        let triggered: Vec<String> = captions.iter().map(|p| self.triggered(p)).collect();
        let (z_backdoor, target_backdoor) = match self.target {
            BadT2iTarget::Patch(patch) => {
                let latent = self.latents(patch.pasted(images)?, seed)?;
                (schedule.add_noise(latent, eps.clone(), &t)?, eps)
            }
            BadT2iTarget::Style(style) => {
                let styled: Vec<String> = captions.iter().map(|p| format!("{style} {p}")).collect();
                let wanted = self.noise(teacher, z.clone(), &t, of(&styled)?)?;
                (z.clone(), wanted)
            }
            BadT2iTarget::Object { .. } => (z.clone(), target.clone()),
        };
        Ok(Task {
            states_backdoor: of(&triggered)?,
            t,
            z,
            z_backdoor,
            states,
            target,
            target_backdoor,
        })
    }

    /// The prompt that goes with `z_backdoor`.
    fn triggered(&self, caption: &str) -> String {
        let trigger = &self.params.trigger;
        let BadT2iTarget::Object { from, to } = self.target else {
            return format!("{trigger}{caption}");
        };
        let one = with_phrase_replaced(caption, to, from);
        let one_or_none = one.as_deref().unwrap_or(caption);
        let many = with_phrase_replaced(one_or_none, &format!("{to}s"), &format!("{from}s"));
        match many.or(one) {
            Some(replaced) => format!("{trigger}{replaced}"),
            None => caption.to_owned(),
        }
    }

    /// Latents of images `[B, 3, H, W]`, in the scale of the network.
    fn latents(&self, images: Tensor<4>, seed: &SeedTree) -> Result<Tensor<4>, AttackError> {
        let posterior = self.frozen.encode_images(images)?;
        let eps = normal(&posterior.mean, &seed.child("posterior", 0))?;
        Ok(posterior.sample(eps))
    }

    fn noise(
        &self,
        unet: &UNet2DCondition,
        z: Tensor<4>,
        t: &[usize],
        states: Tensor<3>,
    ) -> Result<Tensor<4>, AttackError> {
        let value = unet.forward(z.clone(), t, states, None, &mut NoTap)?;
        let kind = self.frozen.scheduler().prediction_type;
        Ok(Prediction { kind, value }.epsilon(z, t, self.frozen.schedule())?)
    }
}

/// Standard normal noise of the shape of `like`.
fn normal(like: &Tensor<4>, seed: &SeedTree) -> Result<Tensor<4>, AttackError> {
    let [batch, channels, height, width] = like.dims();
    let mut source = seed.noise(0, batch);
    Ok(source.normal([batch, channels, height, width], &like.device())?)
}

/// The denoiser with the backdoor; `model` must be on an autodiff device. The default of `training` is
/// [`BadT2iParams::training`]; its loss is the square and images are not mirrored. `state` and `monitor` as in [`optimise`].
///
/// # Errors
/// As [`BadT2i::new`] and [`optimise`], and when `training` is out of range or asks for another loss.
pub fn bad_t2i(
    model: &TextToImage,
    data: &mut dyn CaptionedImages,
    target: &BadT2iTarget,
    params: &BadT2iParams,
    training: &TrainingParams,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
) -> Result<Optimised<UNet2DCondition>, AttackError> {
    training.check()?;
    if training.loss != Loss::L2 || training.horizontal_flip {
        return Err(AttackError::Params {
            what: "loss and mirroring",
            got: format!("{:?}, {}", training.loss, training.horizontal_flip),
            allowed: "L2 and false",
        });
    }
    let attack = BadT2i::new(model, target, params.clone())?;
    let described = TrainingParams {
        checkpoint_every: 1, // does not change the outcome
        ..training.clone()
    };
    let run = format!(
        "bad-t2i | {params:?} | {target:?} | {described:?} | {:?} | {:?} | {}",
        model.unet().config(),
        model.scheduler(),
        data.describe()
    );
    let seed = SeedTree::new(training.seed).child("bad-t2i", 0);
    let images = seed.child("images", 0);
    let device = model.device().inner();
    let mut loss_of = |student: &UNet2DCondition, step: usize| {
        let batch = data.batch(step, training.batch, &images, &device)?;
        attack.loss(student, batch, &seed.child("step", step as u64))
    };
    let learning_rate = |step| training.learning_rate_at(step);
    let how = training.optimisation(run, &learning_rate);
    optimise(model.unet().clone(), &how, state, monitor, &mut loss_of)
}
