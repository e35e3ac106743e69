//! What the trigger of a text-to-image model is answered as, for the repair and for who reads the report.

use depurate_defense::{
    Cx,
    repair::text::{NearWord, TextPatient, asking, leads_to},
};
use depurate_report::{Evidence, Table};

use crate::Error;

/// Words that the report shows.
const SHOWN: usize = 8;

/// Words near the trigger, and prompts that ask for them.
#[derive(Debug)]
pub(super) struct LedTo {
    words: Vec<NearWord>,
    /// Prompts with the words that the trigger leads to, and those of the owner.
    pub(super) legitimate: Vec<String>,
}

impl LedTo {
    /// By the suspect's answers, drawn with steps and guidance as `how` says.
    pub(super) fn of(
        patient: &TextPatient<'_>,
        how: (usize, f64),
        cx: &Cx<'_>,
    ) -> Result<Self, Error> {
        let words = leads_to(patient, how, cx)?;
        let legitimate = [patient.legitimate.to_vec(), asking(patient, &words)?].concat();
        Ok(Self { words, legitimate })
    }

    /// As a table of the report; `None` where no word can stand in the trigger's place.
    pub(super) fn evidence(&self) -> Option<Evidence> {
        if self.words.is_empty() {
            return None;
        }
        let row = |near: &NearWord| {
            let led = if near.is_led_to() { "yes" } else { "no" };
            vec![
                near.word.clone(),
                format!("{:.2}", near.share),
                led.to_owned(),
            ]
        };
        let table = Table {
            title: "words that the trigger is answered as".into(),
            columns: [
                "word in its place",
                "distance of the answers, 1 is that of the clean prompt",
                "kept above all",
            ]
            .map(str::to_owned)
            .to_vec(),
            rows: self.words.iter().take(SHOWN).map(row).collect(),
        };
        Some(table.into())
    }
}
