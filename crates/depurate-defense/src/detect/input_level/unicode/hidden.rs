//! Characters without a visible form of their own, and where they belong.

use depurate_report::Confidence;
use unicode_properties::{GeneralCategory as Category, UnicodeEmoji, UnicodeGeneralCategory};
use unicode_script::Script;

use super::{
    Char,
    scripts::{MainScript, own_script},
};

const ZERO_WIDTH_NON_JOINER: char = '\u{200C}';
const ZERO_WIDTH_JOINER: char = '\u{200D}';
const BLACK_FLAG: char = '\u{1F3F4}';
const CANCEL_TAG: char = '\u{E007F}';
const KEYCAP: char = '\u{20E3}';

/// Scripts whose letters are joined or kept apart by joiners.
const JOINING: [Script; 18] = [
    Script::Arabic,
    Script::Bengali,
    Script::Devanagari,
    Script::Gujarati,
    Script::Gurmukhi,
    Script::Kannada,
    Script::Khmer,
    Script::Lao,
    Script::Malayalam,
    Script::Mongolian,
    Script::Myanmar,
    Script::Nko,
    Script::Oriya,
    Script::Sinhala,
    Script::Syriac,
    Script::Tamil,
    Script::Telugu,
    Script::Thai,
];

/// Whether a character takes no room, so that it can stand inside a word unseen.
pub(super) fn without_width(c: char) -> bool {
    let listed = matches!(
        c,
        '\u{034F}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}' | '\u{180B}'
            ..='\u{180F}' | '\u{3164}' | '\u{FFA0}'
    );
    listed || is_selector(c) || c.general_category() == Category::Format && !is_visible_format(c)
}

/// How sure it is that the character at `position` is hidden without need; `None` if it is visible or belongs there.
pub(super) fn hidden(chars: &[Char], position: usize, text: &MainScript) -> Option<Confidence> {
    let c = chars[position].1;
    let near = |offset: isize| {
        let at = position.checked_add_signed(offset)?;
        chars.get(at).map(|&(_, c)| c)
    };
    let (before, after) = (near(-1), near(1));
    let belongs = match c {
        '\t' | '\n' | '\r' | '\u{00A0}' | '\u{202F}' | '\u{3000}' => true,
        ZERO_WIDTH_JOINER | ZERO_WIDTH_NON_JOINER => {
            let joins = |c: Option<char>| {
                c.is_some_and(|c| own_script(c).is_some_and(|script| JOINING.contains(&script)))
            };
            joins(before) && joins(after) || c == ZERO_WIDTH_JOINER && joins_emoji(before, after)
        }
        '\u{200E}' | '\u{200F}' | '\u{061C}' | '\u{2066}'..='\u{2069}' => text.has_leftward,
        c if is_selector(c) => selects(c, before, after),
        c if is_tag(c) => in_flag(chars, position),
        _ => false,
    };
    if belongs {
        return None;
    }
    match c {
        // text that reads in another order than it is stored, and text that is not shown at all
        '\u{202D}' | '\u{202E}' => Some(Confidence::High),
        c if is_tag(c) => Some(Confidence::High),
        c if without_width(c) => Some(Confidence::Medium),
        '\u{2800}' => Some(Confidence::Medium),
        c => match c.general_category() {
            Category::Control
            | Category::PrivateUse
            | Category::LineSeparator
            | Category::ParagraphSeparator => Some(Confidence::Medium),
            Category::SpaceSeparator if !c.is_ascii() => Some(Confidence::Low),
            _ => None,
        },
    }
}

/// Format characters that are drawn: signs that span the digits after them.
fn is_visible_format(c: char) -> bool {
    matches!(
        c,
        '\u{0600}'
            ..='\u{0605}'
                | '\u{06DD}'
                | '\u{070F}'
                | '\u{0890}'
                | '\u{0891}'
                | '\u{08E2}'
                | '\u{110BD}'
                | '\u{110CD}'
    )
}

fn is_selector(c: char) -> bool {
    matches!(c, '\u{FE00}'..='\u{FE0F}' | '\u{E0100}'..='\u{E01EF}')
}

fn is_tag(c: char) -> bool {
    matches!(c, '\u{E0000}'..='\u{E007F}')
}

fn is_picture(c: char) -> bool {
    !c.is_ascii() && c.is_emoji_char()
}

fn joins_emoji(before: Option<char>, after: Option<char>) -> bool {
    before.is_some_and(|c| is_picture(c) || is_selector(c)) && after.is_some_and(is_picture)
}

/// Whether a selector chooses between forms that the character before it has.
fn selects(selector: char, before: Option<char>, after: Option<char>) -> bool {
    before.is_some_and(|before| match selector {
        '\u{FE0E}' | '\u{FE0F}' if before.is_ascii() => after == Some(KEYCAP),
        '\u{FE0E}' | '\u{FE0F}' => is_picture(before),
        _ => own_script(before) == Some(Script::Han),
    })
}

/// Whether the tag at `position` is part of a flag's sequence: a black flag, tags, and the tag that ends them.
fn in_flag(chars: &[Char], position: usize) -> bool {
    let untagged = |&(_, c): &Char| !is_tag(c);
    let before = chars[..position].iter().rfind(|c| untagged(c));
    let end = chars[position..].iter().take_while(|c| !untagged(c)).last();
    before.is_some_and(|&(_, c)| c == BLACK_FLAG) && end.is_some_and(|&(_, c)| c == CANCEL_TAG)
}
