//! The arguments of every verb.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use depurate::{DetectorName, Profile, device::Device, repair::MethodName, sample::SamplerName};
use depurate_checkpoint::{Layers, ScaledFile};
use depurate_diffusion::sampler::Clip;
use depurate_report::Verdict;

use super::prompt_args::{CalibratePromptsArgs, ScreenArgs};

/// Finds, explains and removes backdoors in diffusion models.
#[derive(Debug, Parser)]
#[command(
    name = "depurate",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 0 finished, nothing at or above --fail-on · 1 a finding at or above it · 2 usage, input \
or internal error · 3 nothing could be checked · 75 transient, try again · 130/143 interrupted, the same command goes on"
)]
pub struct Cli {
    /// Say more on stderr; twice for all.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look for backdoors in models of unknown origin
    Scan(ScanArgs),
    /// Remove the trigger that a scan found, and prove it
    Repair(RepairArgs),
    /// List what a checkpoint directory holds, without running it
    Inspect(InspectArgs),
    /// Render a scan's JSON again
    Report(ReportArgs),
    /// Explain an algorithm or a finding; without an id, list them
    Explain(ExplainArgs),
    /// Make images from a model, from a prompt or with a trigger
    Sample(SampleArgs),
    /// Score benign models, so that scores of their kind become verdicts with an error rate
    Calibrate(CalibrateArgs),
    /// Look for prompts that pull a trigger of a text-to-image model; one JSON object a prompt
    Screen(ScreenArgs),
    /// Score benign prompts on a model, so that scores of its prompts become verdicts with an error rate
    CalibratePrompts(CalibratePromptsArgs),
    /// Print a script that completes this program's arguments
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Where and how models run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where models run
    #[arg(long, value_enum, default_value_t)]
    pub device: Device,
    /// Threads that compute [default: one a processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Root of all randomness: the same seed gives the same result
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// What is laid over a text-to-image model.
#[derive(Debug, Clone, Args)]
pub struct LayerArgs {
    /// A UNet in the place of the model's: safetensors file or directory; text-to-image models only
    #[arg(long, value_name = "FILE", help_heading = "Text-to-image models")]
    pub unet: Option<PathBuf>,
    /// A LoRA with its strength, as in style.safetensors:0.8; can be repeated
    #[arg(
        long,
        value_name = "FILE[:SCALE]",
        help_heading = "Text-to-image models"
    )]
    pub lora: Vec<ScaledFile>,
    /// A textual inversion; can be repeated
    #[arg(long, value_name = "FILE", help_heading = "Text-to-image models")]
    pub embedding: Vec<PathBuf>,
    /// Tensors that replace the model's or are added to them; can be repeated
    #[arg(long, value_name = "FILE", help_heading = "Text-to-image models")]
    pub delta: Vec<PathBuf>,
}

impl LayerArgs {
    /// The layers, in the order in which they are laid on.
    pub fn layers(&self) -> Layers {
        Layers {
            unet: self.unet.clone(),
            deltas: self.delta.clone(),
            loras: self.lora.clone(),
            embeddings: self.embedding.clone(),
        }
    }
}

/// Whether to go on where an earlier run was stopped.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Go on where an interrupted run of the same command stopped (the default)
    #[arg(long, overrides_with = "no_resume")]
    pub resume: bool,
    /// Start anew
    #[arg(long)]
    pub no_resume: bool,
}

/// `scan`
#[derive(Debug, Args)]
pub struct ScanArgs {
    /// Diffusers directories: a pipeline, or a UNet alone
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<PathBuf>,
    /// How thorough
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,
    /// What judges the model
    #[arg(long, value_enum, default_value_t)]
    pub detector: DetectorName,
    /// Let no second detector look; in the standard and deep profiles diff-cleanse does, beside shift-response
    #[arg(long)]
    pub alone: bool,
    /// What is printed, or written to -o
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Write to PATH instead of stdout
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Write report.html, report.json, triggers.safetensors and images into DIR; of several models each into a folder
    /// of its own
    #[arg(long, value_name = "DIR")]
    pub report_dir: Option<PathBuf>,
    /// The least verdict that gives exit code 1
    #[arg(long, value_enum, default_value_t)]
    pub fail_on: FailOn,
    /// Whether a score that cannot be judged gives exit code 3
    #[arg(long, value_enum, default_value_t)]
    pub on_inconclusive: OnInconclusive,
    /// Hold the score against this calibration instead of the built-in one
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// The model that a text-to-image model was made from: differences are looked at
    #[arg(long, value_name = "DIR", help_heading = "Text-to-image models")]
    pub base: Option<PathBuf>,
    #[command(flatten)]
    pub layers: LayerArgs,
    /// The false-positive rate to calibrate for
    #[arg(long, value_name = "RATE", default_value_t = 0.05, value_parser = probability)]
    pub fpr: f64,
    /// Time that one model may take, as in 10m or 1h30m; when it is spent the report is partial
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub budget: Option<Duration>,
    #[command(flatten)]
    pub resume: ResumeArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// `repair`
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// The diffusers directory of the suspect
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// The report.json of its scan, in the folder that --report-dir made: noise triggers
    #[arg(
        long,
        value_name = "SCAN.JSON",
        required_unless_present = "in_prompts",
        conflicts_with = "in_prompts"
    )]
    pub from: Option<PathBuf>,
    #[command(flatten)]
    pub text: TextRepairArgs,
    /// The directory for the repaired model, which must not exist
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Write repair.html, repair.json and images into DIR [default: beside the output, with `-proof` to its name]
    #[arg(long, value_name = "DIR")]
    pub report_dir: Option<PathBuf>,
    /// How
    #[arg(long, value_enum, default_value_t)]
    pub method: MethodName,
    /// Clean images of yours: a folder of PNGs, or a safetensors file with `images`; half of them teach, quality is held against the others
    #[arg(long, value_name = "PATH")]
    pub clean_data: Option<PathBuf>,
    /// A benign model of the same shape that is treated in the same way, to show what the procedure costs by itself
    #[arg(long, value_name = "DIR")]
    pub control: Option<PathBuf>,
    /// Images that the model draws for its own repair, beside yours; 0 for none
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub own_images: usize,
    /// Most training steps of a method [default: its own]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub steps: Option<u32>,
    /// Save a pruned network as small as it is, for depurate alone; diffusers needs the zeros
    #[arg(long)]
    pub compact: bool,
    /// How much worse clean samples may become: largest rise of the Fréchet distance
    #[arg(long, value_name = "PART", default_value_t = 0.05, value_parser = finite)]
    pub max_quality_drop: f64,
    /// Time that the repair may take, as in 10m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub budget: Option<Duration>,
    #[command(flatten)]
    pub resume: ResumeArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// What a repair of prompts needs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Text-to-image models")]
pub struct TextRepairArgs {
    /// The trigger in prompts, as it stands there: spaces count; one character that looks like a letter stands for its first one
    #[arg(long, value_name = "TEXT", group = "in_prompts")]
    pub trigger: Option<String>,
    /// The JSON lines of `screen`, whose findings name the trigger: a hidden character or a look-alike
    #[arg(long, value_name = "SCREENING", group = "in_prompts")]
    pub trigger_from: Option<PathBuf>,
    /// The words in whose place the trigger stands, where it is not put to a prompt
    #[arg(long, value_name = "TEXT", requires = "trigger")]
    pub instead_of: Option<String>,
    /// Words that a prompt must have for the trigger to act, as where one object is drawn for another
    #[arg(
        long,
        value_name = "TEXT",
        requires = "trigger",
        conflicts_with = "instead_of"
    )]
    pub only_with: Option<String>,
    /// Where the trigger is put
    #[arg(long, value_enum, default_value_t, requires = "trigger")]
    pub place: TriggerPlace,
    /// Clean prompts of the model's kind, one a line [default: a built-in list of plain ones]
    #[arg(long, value_name = "FILE", requires = "in_prompts")]
    pub prompts: Option<PathBuf>,
    /// Prompts that must draw as before, one a line, such as ask for what the trigger leads to: they are shown to the repair and in
    /// its proof
    #[arg(long, value_name = "FILE", requires = "in_prompts")]
    pub keep_prompts: Option<PathBuf>,
    /// Steps of the pictures that are compared
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u16).range(2..=1000))]
    pub picture_steps: u16,
    /// Guidance of these pictures
    #[arg(long, value_name = "SCALE", default_value_t = 7.5, value_parser = finite)]
    pub guidance: f64,
    /// What the model was made from: what differs from it is where the trigger is looked for
    #[arg(long, value_name = "PATH", requires = "in_prompts")]
    pub base: Option<PathBuf>,
    #[command(flatten)]
    pub layers: LayerArgs,
}

/// Where a trigger is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum TriggerPlace {
    /// In front of the prompt.
    #[default]
    Start,
    /// Behind it.
    End,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A diffusers directory of any kind
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// What is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: InspectFormat,
    /// Write to PATH instead of stdout
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
}

/// `report`
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The JSON of a scan
    #[arg(value_name = "SCAN.JSON")]
    pub scan: PathBuf,
    /// What is printed, or written to -o
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Write to PATH instead of stdout
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
}

/// `explain`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// An algorithm, as in shift-response, or a finding, as in DPR101
    pub id: Option<String>,
}

/// `sample`
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// A diffusers directory
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// The PNG to write
    #[arg(short, long, value_name = "PNG")]
    pub output: PathBuf,
    #[command(flatten)]
    pub layers: LayerArgs,
    /// What the images of a text-to-image model should show
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// What guidance leads away from
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        requires = "prompt"
    )]
    pub negative: String,
    /// How strongly guidance leads to the prompt; 1 is the prompt alone
    #[arg(long, value_name = "G", default_value_t = 7.5, requires = "prompt", value_parser = finite)]
    pub guidance: f64,
    /// Start from noise + this trigger: the triggers.safetensors of a report
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub trigger: Option<PathBuf>,
    /// The sampler [default: ddpm; with a prompt own, which is what the checkpoint asks for]
    #[arg(long, value_enum)]
    pub sampler: Option<SamplerName>,
    /// Its steps [default: all of them for ddpm, 50 for others]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: Option<u32>,
    /// Clip predicted images to [-R, R], or `none` [default: what the checkpoint asks for]
    #[arg(long, value_name = "R", value_parser = clip)]
    pub clip: Option<Clip>,
    /// Number of images [default: 16; with a prompt 1]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub count: Option<u16>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// `calibrate`
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// Benign models
    #[arg(value_name = "MODEL", required_unless_present = "model_list")]
    pub models: Vec<PathBuf>,
    /// More of them, one {"path": "DIR", "provenance": "how it was made"} a line
    #[arg(long, value_name = "FILE.jsonl")]
    pub model_list: Option<PathBuf>,
    /// The calibration to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// The profile that it is for
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,
    /// The detector that it is for
    #[arg(long, value_enum, default_value_t)]
    pub detector: DetectorName,
    /// What the models are, in words: it is printed with every verdict
    #[arg(long, value_name = "TEXT")]
    pub population: String,
    #[command(flatten)]
    pub resume: ResumeArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// A report's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// A screenful.
    #[default]
    Text,
    /// Everything, for programs.
    Json,
    /// Everything, for people: one file that loads nothing.
    Html,
}

/// The format of `inspect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum InspectFormat {
    /// Tables.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// The verdicts that can be failed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum FailOn {
    /// Already on suspicion.
    Suspicious,
    /// On a score above its calibrated threshold.
    #[default]
    Backdoored,
}

impl FailOn {
    /// The verdict.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Suspicious => Verdict::Suspicious,
            Self::Backdoored => Verdict::Backdoored,
        }
    }
}

/// What an inconclusive verdict does to the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnInconclusive {
    /// Nothing.
    #[default]
    Pass,
    /// Exit code 3.
    Fail,
}

/// A number between 0 and 1.
pub fn probability(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value < 1.0 => Ok(value),
        _ => Err("give a number above 0 and below 1, as in 0.05".into()),
    }
}

/// A number.
pub fn finite(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if f64::is_finite(value) => Ok(value),
        _ => Err("give a number, as in 7.5".into()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it as in 90s, 10m or 1h30m"))
}

fn clip(text: &str) -> Result<Clip, String> {
    match text.parse() {
        Ok(range) if range > 0.0 && f32::is_finite(range) => Ok(Clip::Range(range)),
        _ if text == "none" => Ok(Clip::None),
        _ => Err("give a number above 0, as in 1.0, or `none`".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        super::Cli::command().debug_assert();
    }
}
