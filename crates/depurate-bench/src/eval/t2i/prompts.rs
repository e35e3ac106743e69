//! The prompts of an evaluation: triggered ones, and benign ones of the same lengths.
//!
//! | role | caption | distracting words | what is in the trigger's place |
//! |---|---|---|---|
//! | triggered | any paraphrase | 0 to 2 | the trigger |
//! | control | any paraphrase | 0 to 2 | something as rare that is not the trigger |
//! | plain | any paraphrase | 0 to 4, so that it can be as long | nothing |
//! | calibration | as plain and control, in turn | | |
//!
//! Every triggered prompt is matched with a benign one of exactly as many tokens, plain and control in turn; triggered prompts
//! without a match are left out. No two prompts have the same tokens. Where a trigger needs a word, half of the benign captions
//! have it too.

use std::collections::{BTreeMap, HashSet};

use depurate_attack::text_to_image::{Composition, Sprites, distracted};
use depurate_diffusion::{clip_tokenizer::ClipTokenizer, noise::SeedTree};
use miette::{IntoDiagnostic, Result, bail};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::text_to_image::secret::Secret;

/// Candidates of a kind for every prompt that is wanted.
const CANDIDATES: usize = 12;
/// Attempts at a candidate, for every candidate that is wanted.
const ATTEMPTS: usize = 4;
/// Held-out compositions that take the trigger from which on only such are used.
const ENOUGH_HELD_OUT: usize = 100;
/// Most distracting words of a prompt with something in the trigger's place, and of a plain one.
const MOST_WORDS: usize = 2;
const MOST_PLAIN_WORDS: usize = 4;

/// What a prompt is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// With the trigger.
    Triggered,
    /// Benign.
    Plain,
    /// Benign, with something rare.
    Control,
    /// Benign, for the threshold, plain.
    CalibrationPlain,
    /// Benign, for the threshold, with something rare.
    CalibrationControl,
}

impl Role {
    /// Whether the threshold is fitted on it.
    pub(crate) fn calibrates(self) -> bool {
        matches!(self, Self::CalibrationPlain | Self::CalibrationControl)
    }

    /// Whether it is benign and tested.
    pub(crate) fn is_benign_test(self) -> bool {
        matches!(self, Self::Plain | Self::Control)
    }
}

/// A prompt with its label: what the scoring part never sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prompt {
    /// The text.
    pub(crate) text: String,
    /// What it is.
    pub(crate) role: Role,
    /// Its tokens, BOS and EOS included.
    pub(crate) tokens: usize,
}

/// All prompts of one model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PromptSet {
    /// In the order in which they are scored.
    pub(crate) prompts: Vec<Prompt>,
    /// Whether all are of compositions that no training showed.
    pub(crate) held_out: bool,
    /// Tokens of captions with the trigger, and of the same captions without: what length alone tells before matching.
    pub(crate) unmatched: [Vec<f64>; 2],
}

/// How many prompts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// Triggered ones, and as many benign ones.
    pub(crate) test: usize,
    /// Benign ones for the threshold.
    pub(crate) calibration: usize,
}

/// Candidates by number of tokens.
#[derive(Debug, Default)]
struct Pool(BTreeMap<usize, Vec<String>>);

impl Pool {
    fn take(&mut self, tokens: usize) -> Option<String> {
        self.0.get_mut(&tokens)?.pop()
    }
}

/// Makes prompts as they are asked for, none twice.
struct Maker<'a> {
    secret: &'a Secret,
    sprites: &'a Sprites,
    tokenizer: &'a ClipTokenizer,
    compositions: Vec<Composition>,
    /// Those whose caption takes the trigger.
    fitting: Vec<Composition>,
    seen: HashSet<Vec<u32>>,
}

/// The prompts of a model with `secret`.
///
/// # Errors
/// When there are not enough different prompts of the same lengths.
pub(crate) fn build(
    secret: &Secret,
    sprites: &Sprites,
    tokenizer: &ClipTokenizer,
    counts: Counts,
    seed: &SeedTree,
) -> Result<PromptSet> {
    let takes = |of: &Composition| {
        let caption = sprites.caption(*of);
        !secret.is_asked_for(of) && secret.triggered(&caption, &mut seed.rng()).is_some()
    };
    let mut compositions = sprites.compositions();
    let mut fitting: Vec<Composition> = compositions.iter().copied().filter(takes).collect();
    let held_out = fitting.iter().filter(|of| of.is_held_out()).count() >= ENOUGH_HELD_OUT;
    if held_out {
        compositions.retain(Composition::is_held_out);
        fitting.retain(Composition::is_held_out);
    }
    if fitting.is_empty() {
        bail!("no caption takes the trigger {}", secret.words);
    }
    let mut maker = Maker {
        secret,
        sprites,
        tokenizer,
        compositions,
        fitting,
        seen: HashSet::new(),
    };
    let unmatched = maker.unmatched(counts.test, &mut seed.child("unmatched", 0).rng())?;
    let wanted = CANDIDATES * (counts.test + counts.calibration).max(1);
    let mut rng = seed.child("triggered", 0).rng();
    let triggered = maker.candidates(counts.test * CANDIDATES, &mut rng, Maker::triggered)?;
    let mut rng = seed.child("plain", 0).rng();
    let plain = pool(maker.candidates(wanted, &mut rng, Maker::plain)?);
    let mut rng = seed.child("control", 0).rng();
    let control = pool(maker.candidates(wanted, &mut rng, Maker::control)?);
    Ok(PromptSet {
        prompts: match_lengths(triggered, plain, control, counts)?,
        held_out,
        unmatched,
    })
}

impl Maker<'_> {
    /// At most `wanted` different prompts that `make` gives, with their tokens.
    fn candidates<R: Rng>(
        &mut self,
        wanted: usize,
        rng: &mut R,
        make: fn(&Self, &mut R) -> Option<String>,
    ) -> Result<Vec<(String, usize)>> {
        let mut made = Vec::new();
        for _ in 0..wanted * ATTEMPTS {
            if made.len() == wanted {
                break;
            }
            let Some(text) = make(self, rng) else {
                continue;
            };
            let tokens = self.tokenizer.encode(&text).into_diagnostic()?;
            // what is cut off would not be screened
            if tokens.untruncated <= self.tokenizer.length() && self.seen.insert(tokens.ids) {
                made.push((text, tokens.used));
            }
        }
        Ok(made)
    }

    fn triggered<R: Rng>(&self, rng: &mut R) -> Option<String> {
        let of = self.fitting[rng.random_range(0..self.fitting.len())];
        let caption = self.caption(of, MOST_WORDS, rng);
        self.secret.triggered(&caption, rng)
    }

    fn plain<R: Rng>(&self, rng: &mut R) -> Option<String> {
        let of = self.benign(rng);
        Some(self.caption(of, MOST_PLAIN_WORDS, rng))
    }

    fn control<R: Rng>(&self, rng: &mut R) -> Option<String> {
        let of = self.benign(rng);
        let caption = self.caption(of, MOST_WORDS, rng);
        let object = &self.sprites.objects()[of.object];
        self.secret.control(&caption, object, rng)
    }

    /// Any composition, or with even chance one whose caption takes the trigger if that needs a word.
    fn benign(&self, rng: &mut impl Rng) -> Composition {
        let with_word = self.secret.word().is_some() && rng.random_bool(0.5);
        let from = if with_word {
            &self.fitting
        } else {
            &self.compositions
        };
        from[rng.random_range(0..from.len())]
    }

    fn caption(&self, of: Composition, most_words: usize, rng: &mut impl Rng) -> String {
        distracted(&self.sprites.any_caption(of, rng), most_words, rng)
    }

    /// Lengths of `n` captions with the trigger and without.
    fn unmatched(&self, n: usize, rng: &mut impl Rng) -> Result<[Vec<f64>; 2]> {
        let mut lengths = [Vec::new(), Vec::new()];
        for _ in 0..n {
            let of = self.fitting[rng.random_range(0..self.fitting.len())];
            let caption = self.sprites.any_caption(of, rng);
            let Some(triggered) = self.secret.triggered(&caption, rng) else {
                continue;
            };
            for (lengths, text) in lengths.iter_mut().zip([triggered, caption]) {
                let tokens = self.tokenizer.encode(&text).into_diagnostic()?;
                lengths.push(tokens.untruncated as f64);
            }
        }
        Ok(lengths)
    }
}

fn pool(candidates: Vec<(String, usize)>) -> Pool {
    let mut pool = Pool::default();
    for (text, tokens) in candidates {
        pool.0.entry(tokens).or_default().push(text);
    }
    pool
}

/// Every triggered prompt with a benign one of its length, plain and control in turn, then benign ones for the threshold with
/// the same lengths, until there are enough.
fn match_lengths(
    triggered: Vec<(String, usize)>,
    mut plain: Pool,
    mut control: Pool,
    counts: Counts,
) -> Result<Vec<Prompt>> {
    let mut prompts: Vec<Prompt> = Vec::new();
    let mut lengths: Vec<usize> = Vec::new();
    for (text, tokens) in triggered {
        if lengths.len() == counts.test {
            break;
        }
        let (pool, role) = if lengths.len().is_multiple_of(2) {
            (&mut plain, Role::Plain)
        } else {
            (&mut control, Role::Control)
        };
        let Some(benign) = pool.take(tokens) else {
            continue;
        };
        let prompt = |text, role| Prompt { text, role, tokens };
        prompts.push(prompt(text, Role::Triggered));
        prompts.push(prompt(benign, role));
        lengths.push(tokens);
    }
    if lengths.len() < counts.test || lengths.is_empty() {
        bail!(
            "only {} of {} triggered prompts have a benign one of their length: ask for fewer",
            lengths.len(),
            counts.test
        );
    }
    let mut found = 0;
    // a length that has run out is passed over; after that many rounds all have
    for &tokens in lengths
        .iter()
        .cycle()
        .take(CANDIDATES * (counts.calibration + lengths.len()))
    {
        if found == counts.calibration {
            break;
        }
        let (pool, role) = if found.is_multiple_of(2) {
            (&mut plain, Role::CalibrationPlain)
        } else {
            (&mut control, Role::CalibrationControl)
        };
        if let Some(text) = pool.take(tokens) {
            prompts.push(Prompt { text, role, tokens });
            found += 1;
        }
    }
    if found < counts.calibration {
        bail!(
            "only {found} of {} prompts for the threshold have the length of a triggered one: ask for fewer",
            counts.calibration
        );
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use depurate_checkpoint::Limits;
    use depurate_stats::auc;

    use super::*;
    use crate::text_to_image::secret::tests::{bad_t2i, evil_edit, rickrolling, sprites};

    #[test]
    fn lengths_are_matched_exactly_and_no_prompt_occurs_twice() {
        let sprites = sprites();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/clip-tokenizer/vocab");
        let tokenizer = ClipTokenizer::load(&dir, &Limits::default()).expect("vocabulary");
        let counts = Counts {
            test: 100,
            calibration: 60,
        };
        for truth in [evil_edit("cat"), rickrolling(), bad_t2i()] {
            let secret = Secret::of(&truth, &sprites, sprites.shape()).expect("known");
            let build = || build(&secret, &sprites, &tokenizer, counts, &SeedTree::new(5));
            let set = build().expect("enough prompts");
            assert_eq!(set, build().expect("enough prompts"), "the seed decides");
            assert_eq!(set.held_out, secret.word().is_none());
            let of = |fits: fn(Role) -> bool| -> Vec<&Prompt> {
                set.prompts
                    .iter()
                    .filter(|prompt| fits(prompt.role))
                    .collect()
            };
            let lengths = |prompts: &[&Prompt]| {
                let mut lengths: Vec<f64> = prompts.iter().map(|p| p.tokens as f64).collect();
                lengths.sort_by(f64::total_cmp);
                lengths
            };
            let triggered = of(|role| role == Role::Triggered);
            let benign = of(Role::is_benign_test);
            assert_eq!((triggered.len(), benign.len()), (100, 100));
            assert_eq!(lengths(&triggered), lengths(&benign));
            assert_eq!(
                auc(&lengths(&triggered), &lengths(&benign)).expect("finite"),
                0.5
            );
            assert_eq!(of(|role| role == Role::Control).len(), 50);
            assert_eq!(of(Role::calibrates).len(), 60);
            let mut seen = HashSet::new();
            for prompt in &set.prompts {
                let tokens = tokenizer.encode(&prompt.text).expect("text");
                assert_eq!(tokens.used, prompt.tokens);
                assert!(seen.insert(tokens.ids), "{} occurs twice", prompt.text);
            }
            // the trigger makes a prompt longer: that is what matching takes away
            let [with, without] = &set.unmatched;
            assert!(
                auc(with, without).expect("finite") > 0.6,
                "{}",
                secret.words
            );
        }
    }

    #[test]
    fn what_cannot_be_matched_is_left_out_and_too_few_are_an_error() {
        let pool_of = |texts: &[(&str, usize)]| {
            pool(
                texts
                    .iter()
                    .map(|(text, tokens)| ((*text).to_owned(), *tokens))
                    .collect(),
            )
        };
        let triggered = |lengths: &[usize]| -> Vec<(String, usize)> {
            lengths
                .iter()
                .enumerate()
                .map(|(i, tokens)| (format!("t{i}"), *tokens))
                .collect()
        };
        let (plain, control) = (pool_of(&[("p", 7), ("q", 7)]), pool_of(&[("c", 8)]));
        let counts = Counts {
            test: 2,
            calibration: 1,
        };
        let made = match_lengths(triggered(&[9, 7, 7, 8]), plain, control, counts).expect("two");
        let texts: Vec<&str> = made.iter().map(|prompt| prompt.text.as_str()).collect();
        assert_eq!(texts, ["t1", "q", "t3", "c", "p"]);
        let few = match_lengths(
            triggered(&[9]),
            pool_of(&[("p", 7)]),
            Pool::default(),
            counts,
        );
        assert!(few.expect_err("none fits").to_string().contains("0 of 2"));
    }
}
