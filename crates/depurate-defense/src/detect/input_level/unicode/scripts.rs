//! Which script a text is in, and which characters of a word are in another.

use depurate_report::Confidence;
use unicode_script::{Script, UnicodeScript};
use unicode_security::mixed_script::AugmentedScriptSet;

use super::{Char, Seen, UnicodeKind, looks_like};

/// Scripts that are written in one word with Latin letters and with each other.
const EAST_ASIAN: [Script; 5] = [
    Script::Han,
    Script::Hiragana,
    Script::Katakana,
    Script::Hangul,
    Script::Bopomofo,
];
/// Scripts that run to the left.
const LEFTWARD: [Script; 6] = [
    Script::Arabic,
    Script::Hebrew,
    Script::Syriac,
    Script::Thaana,
    Script::Nko,
    Script::Adlam,
];

/// The scripts of a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MainScript {
    /// The most frequent; Latin where two are equally frequent, else the one that comes first.
    pub main: Option<Script>,
    /// Whether there are Chinese, Japanese or Korean characters.
    pub has_east_asian: bool,
    /// Whether there are characters of a script that runs to the left.
    pub has_leftward: bool,
}

impl MainScript {
    pub(super) fn of(chars: impl Iterator<Item = char>) -> Self {
        let mut counts: Vec<(Script, usize)> = Vec::new();
        for script in chars.filter_map(own_script) {
            match counts.iter_mut().find(|(seen, _)| *seen == script) {
                Some((_, count)) => *count += 1,
                None => counts.push((script, 1)),
            }
        }
        let most = counts.iter().map(|&(_, count)| count).max();
        let frequent = || counts.iter().filter(|&&(_, count)| Some(count) == most);
        let latin = frequent().find(|(script, _)| *script == Script::Latin);
        let has = |scripts: &[Script]| counts.iter().any(|(seen, _)| scripts.contains(seen));
        Self {
            main: latin
                .or_else(|| frequent().next())
                .map(|&(script, _)| script),
            has_east_asian: has(&EAST_ASIAN),
            has_leftward: has(&LEFTWARD),
        }
    }

    /// Whether Latin is the main script; a text without letters counts as Latin.
    pub(super) fn is_latin(&self) -> bool {
        self.main.is_none_or(|main| main == Script::Latin)
    }
}

/// The script of a character that belongs to one.
pub(super) fn own_script(c: char) -> Option<Script> {
    match c.script() {
        Script::Common | Script::Inherited | Script::Unknown => None,
        script => Some(script),
    }
}

/// A character of another script than its surroundings.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Odd {
    /// What it looks like in the script around it.
    looks_like: Option<String>,
}

impl Odd {
    pub(super) fn finding(self) -> Seen {
        let kind = match self.looks_like {
            Some(_) => UnicodeKind::Confusable,
            None => UnicodeKind::MixedScript,
        };
        (kind, Confidence::Medium, self.looks_like)
    }
}

/// For each character of a word, whether it is odd there. A word all of whose letters look like basic Latin ones is odd as a
/// whole in a Latin text.
pub(super) fn odd_characters(word: &[Char], text: &MainScript) -> Vec<Option<Odd>> {
    let chars = || word.iter().map(|&(_, c)| c);
    let together = chars().fold(AugmentedScriptSet::default(), |mut together, c| {
        together.intersect_with(AugmentedScriptSet::for_char(c));
        together
    });
    if together.is_empty() {
        let own = MainScript::of(chars());
        // with as many letters of two scripts, the text decides which are odd
        let tied = |script| chars().filter(|&c| own_script(c) == Some(script)).count();
        let main = match (own.main, text.main) {
            (Some(own), Some(text)) if tied(text) == tied(own) => Some(text),
            (own, _) => own,
        };
        return chars().map(|c| odd(c, main?, &chars)).collect();
    }
    let foreign = chars().find_map(own_script).filter(|_| text.is_latin());
    if foreign.is_none_or(|script| script == Script::Latin) {
        return vec![None; word.len()];
    }
    let looks: Vec<Option<String>> = chars().map(as_basic_latin).collect();
    let all = chars()
        .zip(&looks)
        .all(|(c, looks)| looks.is_some() || own_script(c).is_none());
    let odd = |(c, looks): (char, Option<String>)| {
        own_script(c)?;
        Some(Odd { looks_like: looks })
    };
    if all && text.main.is_some() {
        chars().zip(looks).map(odd).collect()
    } else {
        vec![None; word.len()]
    }
}

/// Whether `c` is odd in a word whose main script is `main`.
fn odd<I: Iterator<Item = char>>(c: char, main: Script, word: &impl Fn() -> I) -> Option<Odd> {
    let script = own_script(c)?;
    let representative = word().find(|&other| own_script(other) == Some(main))?;
    let mut shared = AugmentedScriptSet::for_char(c);
    shared.intersect_with(AugmentedScriptSet::for_char(representative));
    if !shared.is_empty() {
        return None;
    }
    let of_main = |looks: &String| {
        looks
            .chars()
            .all(|c| own_script(c).is_none_or(|script| script == main))
    };
    let looks_like = looks_like(c).filter(of_main);
    let east_asian = |script| EAST_ASIAN.contains(&script);
    let written_together = (east_asian(script) || script == Script::Latin)
        && (east_asian(main) || main == Script::Latin);
    (!written_together || as_basic_latin(c).is_some()).then_some(Odd { looks_like })
}

/// The basic Latin letters or digits that a character looks like without being one.
fn as_basic_latin(c: char) -> Option<String> {
    let ascii = |looks: &String| looks.chars().all(|c| c.is_ascii_alphanumeric());
    looks_like(c).filter(|looks| !c.is_ascii() && ascii(looks))
}
