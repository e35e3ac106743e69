//! What was measured beside the findings, what was tested, and what was not.

use depurate_defense::detect::model_level::static_weights;
use depurate_report::{Evidence, Tested};

use super::{
    FileHash, Profile,
    tables::{note, spectra, table},
};

impl Profile {
    /// What was measured beside the findings.
    pub fn evidence(&self) -> Vec<Evidence> {
        let mut evidence = Vec::new();
        if !self.files.is_empty() {
            let short = |sha256: &str| sha256.chars().take(16).collect::<String>();
            let row = |file: &FileHash| {
                let base = file.base.as_deref();
                let same = if base == Some(&file.sha256) {
                    "the same"
                } else {
                    "differs"
                };
                vec![
                    file.part.to_string(),
                    short(&file.sha256),
                    base.map_or_else(|| "-".into(), short),
                    same.into(),
                ]
            };
            let rows = self.files.iter().map(row).collect();
            let columns = ["network", "sha256 (start)", "base", "file"];
            evidence.push(table("weight files and the base's", columns, rows));
        }
        if let Some(edit) = self.edit.as_ref().filter(|edit| !edit.alone) {
            evidence.push(note(
                "Of the changed tensors, the cross-attention's keys and values have these spectra. Since other tensors are \
                 changed, too, they are no finding.",
            ));
            evidence.push(spectra(edit));
        }
        if let Some(vocabulary) = &self.vocabulary {
            let tokens = match &self.tokenizer {
                Some(tokenizer) => format!(
                    "; the tokenizer's vocab.json has {}, with {} added tokens",
                    tokenizer.size,
                    tokenizer.added.len()
                ),
                None => String::new(),
            };
            evidence.push(note(&format!(
                "The token table has {} rows of {} channels{tokens}.",
                vocabulary.rows, vocabulary.width
            )));
        }
        evidence
    }

    /// What was tested.
    pub fn tested(&self) -> Vec<Tested> {
        let mut tested = vec![
            (
                "files that can run code, tensors with odd values",
                "read, not run",
            ),
            ("hashes of every weight file", "sha256"),
        ];
        if self.vocabulary.is_some() {
            tested.push((
                "tokens beyond the vocabulary, rows of odd length",
                "the token table",
            ));
        }
        if self.drift.is_some() {
            tested.push((
                "which tensors differ from the base, and by how much",
                "every float tensor of all networks, eq. (1)",
            ));
            tested.push((
                "low-rank edits of the cross-attention's keys and values",
                "spectra of the differences, eq. (2)-(5)",
            ));
        }
        if !self.adapters.is_empty() {
            tested.push((
                "what the adapters change",
                "singular values of every pair, eq. (6)",
            ));
        }
        tested
            .into_iter()
            .map(|(what, how)| Tested {
                what: what.into(),
                how: format!("{}: {how}", static_weights::ID),
            })
            .collect()
    }

    /// What was not.
    pub fn not_tested(&self) -> Vec<String> {
        let mut list = vec![
            "whether any prompt makes the model generate an attacker's image (look-alike letters, rare words, phrases, syntax): \
             the model was not run"
                .to_owned(),
            "triggers in the initial noise: the model was not run".to_owned(),
        ];
        if self.base.is_none() {
            list.push(
                "edits of the weights (text encoder alone, keys and values of the cross-attention, single tokens): give the \
                 model that this one was made from with --base"
                    .to_owned(),
            );
        } else {
            list.push("the base itself: a backdoor that it has, too, is no difference".to_owned());
        }
        for part in &self.missing {
            list.push(format!(
                "the {part}: the model's directory does not hold it"
            ));
        }
        list.push(
            "pixels that the autoencoder adds, and what a safety checker lets through".to_owned(),
        );
        list.push("memorised or otherwise harmful images that need no trigger".to_owned());
        list
    }
}
