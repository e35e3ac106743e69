//! What the files of a text-to-image model give away, in words: findings, evidence, what was tested and what was not.

mod scope;
mod tables;

use depurate_checkpoint::{AddedTokens, LoraLayout, ModelPart};
use depurate_defense::detect::model_level::static_weights::{
    self, AdapterLayer, Drift, KeyValueEdit, RANKS, TensorDrift, Vocabulary,
};
use depurate_report::{AlgorithmId, Confidence, Evidence, Finding, FindingId};

use tables::{most_changed, note, percent, spectra, table, values};

/// Tokens of CLIP's vocabulary, which every published Stable Diffusion 1 and 2 has.
const CLIP_TOKENS: usize = 49408;

/// The tokenizer's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenizer {
    /// Tokens of `vocab.json`.
    pub size: usize,
    /// Tokens of `added_tokens.json` beyond those.
    pub added: Vec<String>,
}

/// An adapter that was laid over the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The file.
    pub file: String,
    /// Its strength.
    pub scale: f32,
    /// How it names its tensors.
    pub layout: LoraLayout,
    /// What it changes.
    pub layers: Vec<AdapterLayer>,
}

/// A weight file held against the base's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHash {
    /// The network.
    pub part: ModelPart,
    /// sha256 of the suspect's file.
    pub sha256: String,
    /// sha256 of the base's, if it has one.
    pub base: Option<String>,
}

/// Everything that was read off the files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profile {
    /// The base, as it was given.
    pub base: Option<String>,
    /// Networks that the model lacks.
    pub missing: Vec<ModelPart>,
    /// The token table.
    pub vocabulary: Option<Vocabulary>,
    /// The tokenizer.
    pub tokenizer: Option<Tokenizer>,
    /// Tokens that textual inversions added.
    pub added: Vec<AddedTokens>,
    /// Adapters.
    pub adapters: Vec<Adapter>,
    /// Differences from the base.
    pub drift: Option<Drift>,
    /// Differences of the cross-attention's keys and values, if there are any.
    pub edit: Option<KeyValueEdit>,
    /// Weight files against the base's.
    pub files: Vec<FileHash>,
}

impl Profile {
    /// Whether a finding is the profile of an attack. The others are for information: fine-tunes, adapters and new tokens are
    /// what most published models are.
    pub fn is_suspicious(id: FindingId) -> bool {
        [
            FindingId::TEXT_ENCODER_EDIT,
            FindingId::TOKEN_ROWS,
            FindingId::KEY_VALUE_EDIT,
        ]
        .contains(&id)
    }

    /// What was found.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(self.key_value_edit());
        findings.extend(self.text_encoder_edit());
        findings.extend(self.vocabulary_findings());
        findings.extend(self.weight_drift());
        findings.extend(self.adapters.iter().filter_map(adapter));
        findings
    }

    fn key_value_edit(&self) -> Option<Finding> {
        let edit = self.edit.as_ref().filter(|edit| edit.alone)?;
        let columns = edit.layers.first().map_or(0, |(tensor, _)| tensor.shape[1]);
        // An eighth of the directions or fewer: a difference without structure has an eighth of its energy there.
        let few = RANKS.iter().rposition(|r| 8 * r <= columns);
        let concentrated = few.is_some_and(|at| edit.common[at] > 0.5);
        let summary = format!(
            "{} of {} key and value projections differ from the base, and nothing else does. {} Edits in closed form of one \
             phrase (EvilEdit) look like this, and so do benign ones that erase or rename a concept.",
            edit.layers.len(),
            edit.projections,
            few.map_or_else(String::new, |at| format!(
                "In {} of {columns} directions of the text, common to all layers, lies {:.1} % of the change ({:.1} % with \
                 directions of each layer's own).",
                RANKS[at],
                100.0 * edit.common[at],
                100.0 * edit.own[at]
            ))
        );
        let confidence = if concentrated {
            Confidence::Medium
        } else {
            Confidence::Low
        };
        finding(
            FindingId::KEY_VALUE_EDIT,
            confidence,
            summary,
            vec![spectra(edit)],
        )
    }

    fn text_encoder_edit(&self) -> Option<Finding> {
        let drift = self.drift.as_ref()?;
        let text = ModelPart::TextEncoder;
        let (changed, all) = drift.counts(text);
        let only_text = changed > 0
            && drift.changed().all(|tensor| tensor.part == text)
            && drift
                .only_here
                .iter()
                .chain(&drift.only_base)
                .all(|(part, _)| *part == text);
        if !only_text {
            return None;
        }
        let is_table = |tensor: &TensorDrift| tensor.name.ends_with("token_embedding.weight");
        let rows = self.vocabulary.as_ref().and_then(|v| v.changed.as_ref());
        if drift.changed().all(is_table)
            && let Some(rows) = rows
        {
            let summary = format!(
                "{} rows of the token table differ from the base, and nothing else does. A token that was learnt anew leaves \
                 this, whatever it was learnt for.",
                rows.len()
            );
            let cells = rows
                .iter()
                .map(|(row, drift)| vec![row.to_string(), percent(*drift)]);
            let table = table(
                "changed rows",
                ["token id", "relative change"],
                cells.collect(),
            );
            return finding(
                FindingId::TOKEN_ROWS,
                Confidence::Medium,
                summary,
                vec![table],
            );
        }
        let summary = format!(
            "{changed} of {all} tensors of the text encoder differ from the base, and no other network does. Attacks on the \
             text encoder (Rickrolling, syntactic triggers) leave this; so does a benign fine-tuning of it alone, which is rare."
        );
        let evidence = vec![most_changed(drift)];
        finding(
            FindingId::TEXT_ENCODER_EDIT,
            Confidence::Medium,
            summary,
            evidence,
        )
    }

    fn vocabulary_findings(&self) -> Vec<Finding> {
        let Some(vocabulary) = &self.vocabulary else {
            return Vec::new();
        };
        let (usual, whose) = match (vocabulary.base_rows, &self.tokenizer) {
            (Some(rows), _) => (rows, "the base has"),
            (None, Some(tokenizer)) => (tokenizer.size, "the tokenizer's vocab.json has"),
            (None, None) => (CLIP_TOKENS, "CLIP has"),
        };
        let enlarged = (vocabulary.rows > usual).then(|| {
            let summary = format!(
                "The token table has {} rows where {whose} {usual}. Each further one is a token that was learnt for this model; \
                 prompts reach it by its name only.",
                vocabulary.rows
            );
            let of_files = self.added.iter().flat_map(|added| {
                let file = added.path.display().to_string();
                let named = added.ids.clone().zip(&added.tokens);
                named.map(move |(id, token)| vec![token.clone(), id.to_string(), file.clone()])
            });
            let of_tokenizer = self.tokenizer.iter().flat_map(|tokenizer| {
                let file = "added_tokens.json".to_owned();
                let row = move |token: &String| vec![token.clone(), "-".into(), file.clone()];
                tokenizer.added.iter().map(row)
            });
            let rows: Vec<Vec<String>> = of_files.chain(of_tokenizer).collect();
            let evidence = if rows.is_empty() {
                vec![note("No file names the tokens.")]
            } else {
                vec![table("added tokens", ["token", "id", "file"], rows)]
            };
            finding(FindingId::ENLARGED_VOCABULARY, Confidence::High, summary, evidence)
        });
        let outliers = (!vocabulary.outliers.is_empty()).then(|| {
            let summary = "These rows of the token table are much longer or shorter than all others. Learnt tokens often are.";
            let rows = vocabulary
                .outliers
                .iter()
                .map(|(row, norm, z)| vec![row.to_string(), format!("{norm:.3}"), format!("{z:.0}")]);
            let evidence = table("rows", ["token id", "length", "robust z"], rows.collect());
            finding(FindingId::EMBEDDING_OUTLIER, Confidence::Medium, summary.into(), vec![evidence])
        });
        enlarged
            .flatten()
            .into_iter()
            .chain(outliers.flatten())
            .collect()
    }

    fn weight_drift(&self) -> Option<Finding> {
        let drift = self.drift.as_ref()?;
        let parts: Vec<String> = ModelPart::ALL
            .into_iter()
            .filter(|part| drift.counts(*part).1 > 0)
            .map(|part| {
                let (changed, all) = drift.counts(part);
                format!("{part}: {changed} of {all}")
            })
            .collect();
        let apart = drift.only_here.len() + drift.only_base.len();
        if drift.changed().next().is_none() && apart == 0 {
            return None;
        }
        let mut summary = format!(
            "Tensors that differ, by network: {}. Every fine-tuning differs; what counts is whether the change is the one that \
             is stated for this model.",
            parts.join(", ")
        );
        if apart > 0 {
            summary.push_str(&format!(
                " {apart} tensors stand in one of the models only or have other shapes, and were not compared."
            ));
        }
        let mut evidence = vec![most_changed(drift)];
        if apart > 0 {
            let here = drift.only_here.iter().map(|place| (place, "this model"));
            let there = drift.only_base.iter().map(|place| (place, "the base"));
            let row = |((part, name), whose): (&(ModelPart, String), &str)| {
                vec![part.to_string(), name.clone(), whose.to_owned()]
            };
            let rows = here.chain(there).map(row).collect();
            evidence.push(table(
                "not compared",
                ["network", "tensor", "only in"],
                rows,
            ));
        }
        finding(FindingId::WEIGHT_DRIFT, Confidence::High, summary, evidence)
    }
}

fn finding(
    id: FindingId,
    confidence: Confidence,
    summary: String,
    evidence: Vec<Evidence>,
) -> Option<Finding> {
    let detector = AlgorithmId::from_static(static_weights::ID);
    Some(id.info()?.finding(detector, confidence, summary, evidence))
}

fn adapter(adapter: &Adapter) -> Option<Finding> {
    let count = |part: ModelPart| {
        adapter
            .layers
            .iter()
            .filter(|l| l.pair.part == part)
            .count()
    };
    let summary = format!(
        "{}, at strength {}; adapted parameters of the UNet: {}, of the text encoder: {}. An adapter can carry a backdoor alone; \
         whether this one does was not tested.",
        adapter.file,
        adapter.scale,
        count(ModelPart::Unet),
        count(ModelPart::TextEncoder),
    );
    let mut layers: Vec<&AdapterLayer> = adapter.layers.iter().collect();
    layers.sort_by(|a, b| b.relative.total_cmp(&a.relative));
    let rows = layers.iter().map(|layer| {
        vec![
            layer.pair.parameter.clone(),
            layer.pair.rank.to_string(),
            format!("{:.3}", layer.pair.scale),
            percent(layer.relative),
            format!("{:.1}", layer.effective_rank()),
            values(&layer.singular_values),
        ]
    });
    let columns = [
        "parameter",
        "rank",
        "scale",
        "change",
        "effective rank",
        "singular values",
    ];
    let table = table(
        "largest relative changes, at strength 1",
        columns,
        rows.collect(),
    );
    finding(FindingId::ADAPTER, Confidence::High, summary, vec![table])
}
