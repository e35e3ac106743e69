//! Pictures with captions in files: what attacks train on, and prompts to calibrate and to screen with.

use std::path::PathBuf;

use clap::Args;
use depurate_attack::text_to_image::{Composition, distracted, pictures};
use depurate_checkpoint::write_atomic;
use depurate_diffusion::{Device, noise::SeedTree};
use miette::{IntoDiagnostic, Result, bail};
use rand::seq::SliceRandom;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use super::Drawings;
use crate::{console::answer, grid};

/// Pictures in a row of the grid, how many rows, and how often each pixel is drawn.
const COLUMNS: usize = 16;
const ROWS: usize = 8;
const ZOOM: u32 = 2;

/// Draw pictures and write their captions.
#[derive(Debug, Args)]
pub(crate) struct DrawingsCommand {
    #[command(flatten)]
    drawings: Drawings,
    /// Pictures, of compositions in a random order.
    #[arg(long, default_value_t = 2000)]
    n: usize,
    /// Compositions that training did not show instead of those that it did.
    #[arg(long)]
    held_out: bool,
    /// Any paraphrase instead of the plain caption.
    #[arg(long)]
    paraphrase: bool,
    /// Up to so many words in it that say nothing of the picture.
    #[arg(long, default_value_t = 0)]
    words: usize,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the captions go (JSON lines: caption and prompt, which are the same, and what is shown); must not exist.
    #[arg(long, value_name = "FILE")]
    captions: PathBuf,
    /// Where the pictures go (safetensors, `images` [N, 32, 32, 3]); must not exist.
    #[arg(long, value_name = "FILE")]
    images: Option<PathBuf>,
    /// Also write the first pictures as a grid.
    #[arg(long, value_name = "PNG")]
    grid: Option<PathBuf>,
}

impl DrawingsCommand {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<()> {
        for path in [Some(&self.captions), self.images.as_ref()]
            .into_iter()
            .flatten()
        {
            if path.exists() {
                bail!("{} exists: choose a new file or remove it", path.display());
            }
        }
        let sprites = self.drawings.read()?;
        let mut rng = SeedTree::new(self.seed).child("drawings", 0).rng();
        let mut all = sprites.compositions();
        all.retain(|composition| composition.is_held_out() == self.held_out);
        all.shuffle(&mut rng);
        let chosen: Vec<Composition> = all.into_iter().cycle().take(self.n).collect();
        let mut lines = String::new();
        for of in &chosen {
            let caption = if self.paraphrase {
                sprites.any_caption(*of, &mut rng)
            } else {
                sprites.caption(*of)
            };
            let caption = distracted(&caption, self.words, &mut rng);
            let [object, style, color, background] = sprites.names(*of);
            let line = json!({
                "caption": caption,
                "prompt": caption,
                "object": object,
                "style": style,
                "color": color,
                "background": background,
            });
            lines += &format!("{line}\n");
        }
        write_atomic(&self.captions, lines.as_bytes()).into_diagnostic()?;
        let shape = sprites.shape();
        if let Some(path) = &self.images {
            let plane = shape.height * shape.width;
            let mut bytes = Vec::with_capacity(chosen.len() * shape.len());
            for of in &chosen {
                let planes = sprites.draw(*of, &mut rng);
                bytes.extend(
                    (0..plane).flat_map(|i| [planes[i], planes[plane + i], planes[2 * plane + i]]),
                );
            }
            let dims = vec![chosen.len(), shape.height, shape.width, shape.channels];
            let view = TensorView::new(Dtype::U8, dims, &bytes).into_diagnostic()?;
            let file = safetensors::serialize([("images", view)], None).into_diagnostic()?;
            write_atomic(path, &file).into_diagnostic()?;
        }
        if let Some(path) = &self.grid {
            let shown = &chosen[..chosen.len().min(COLUMNS * ROWS)];
            grid::save(
                path,
                &pictures(&sprites, shown, &mut rng, &Device::flex()),
                COLUMNS,
                ZOOM,
            )?;
        }
        answer(&format!(
            "{} captions in {}",
            chosen.len(),
            self.captions.display()
        ));
        Ok(())
    }
}
