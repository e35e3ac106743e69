//! Which positions of a triggered prompt are the trigger's, and which are words of the clean one.
//!
//! The longest common subsequence of the two prompts' tokens: it covers a trigger in front, behind or inside, a look-alike letter (all
//! pieces of its word are the trigger's, and the clean word has no counterpart) and a phrase around a word that stays.

use depurate_diffusion::clip_tokenizer::Tokens;

use super::Positions;

/// The positions of `triggered` against those of `clean`, both counted from the start token, which is none of them; nor are the end
/// and the padding.
pub fn aligned(triggered: &Tokens, clean: &Tokens) -> Positions {
    let words = |tokens: &Tokens| -> Vec<u32> {
        let end = tokens.used.saturating_sub(1).max(1);
        tokens.ids.get(1..end).unwrap_or_default().to_vec()
    };
    let (a, b) = (words(triggered), words(clean));
    // longest[i][j]: length of the longest common subsequence of a[i..] and b[j..]
    let mut longest = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i][j] = if a[i] == b[j] {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let (mut trigger, mut content) = (Vec::new(), Vec::new());
    while i < a.len() {
        // a trigger that repeats a word is taken to stand in front of it: the later match is preferred
        let skipping_keeps = longest[i + 1][j] == longest[i][j];
        if j == b.len() || skipping_keeps {
            trigger.push(i + 1);
            i += 1;
        } else if a[i] == b[j] && longest[i][j] == longest[i + 1][j + 1] + 1 {
            content.push((i + 1, j + 1));
            (i, j) = (i + 1, j + 1);
        } else {
            j += 1;
        }
    }
    Positions {
        trigger,
        content,
        stand_ins: Vec::new(),
    }
}

/// For every position of `triggered`, padding included, the one of `clean` that it shall read as: the same word's; for the trigger's
/// the clean word that it stands in for, or else the position before; end for end, padding for padding.
pub fn stand_ins(triggered: &Tokens, clean: &Tokens) -> Vec<usize> {
    let Positions { content, .. } = aligned(triggered, clean);
    let end = |tokens: &Tokens| tokens.used.saturating_sub(1);
    let (end_of_triggered, end_of_clean) = (end(triggered), end(clean));
    let last = clean.ids.len().saturating_sub(1);
    let mut words = content.iter().peekable();
    let (mut before, mut found) = (0, Vec::with_capacity(triggered.ids.len()));
    for position in 0..triggered.ids.len() {
        if position >= end_of_triggered {
            found.push((end_of_clean + position - end_of_triggered).min(last));
            continue;
        }
        if let Some(&(_, at)) = words.next_if(|(student, _)| *student == position) {
            before = at;
        } else if position > 0 {
            let next = words.peek().map_or(end_of_clean, |&&(_, at)| at);
            before = (before + 1).min(next.saturating_sub(1)).max(before); // a clean word in between, if there is one
        }
        found.push(before);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(words: &[u32]) -> Tokens {
        let mut ids = vec![0];
        ids.extend(words);
        ids.push(1);
        let used = ids.len();
        ids.resize(12, 1);
        Tokens {
            ids,
            used,
            untruncated: used,
        }
    }

    fn check(triggered: &[u32], clean: &[u32], trigger: &[usize], content: &[(usize, usize)]) {
        let found = aligned(&tokens(triggered), &tokens(clean));
        assert_eq!(found.trigger, trigger, "{triggered:?} {clean:?}");
        assert_eq!(found.content, content, "{triggered:?} {clean:?}");
    }

    #[test]
    fn triggers_are_found_wherever_they_stand() {
        check(&[90, 5, 6], &[5, 6], &[1], &[(2, 1), (3, 2)]); // in front
        check(&[5, 6, 90, 91], &[5, 6], &[3, 4], &[(1, 1), (2, 2)]); // behind
        check(&[5, 90, 6], &[5, 6], &[2], &[(1, 1), (3, 2)]); // inside
        check(&[5, 80, 81, 6], &[5, 7, 6], &[2, 3], &[(1, 1), (4, 3)]); // a look-alike in word 7
        check(&[5, 9, 9, 9, 8], &[5, 8], &[2, 3, 4], &[(1, 1), (5, 2)]); // a phrase that ends in the word
        check(&[8, 8, 8], &[8], &[1, 2], &[(3, 1)]); // a repeated word
        check(&[5, 6], &[5, 6], &[], &[(1, 1), (2, 2)]); // none
        check(&[90], &[], &[1], &[]); // nothing else
        check(&[], &[5], &[], &[]);
    }

    #[test]
    fn every_position_has_one_to_read_as() {
        let of = |a: &[u32], b: &[u32]| stand_ins(&tokens(a), &tokens(b));
        // start, words, end, padding
        assert_eq!(of(&[5, 6], &[5, 6]), (0..12).collect::<Vec<_>>());
        assert_eq!(
            of(&[90, 5, 6], &[5, 6]),
            [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
        );
        assert_eq!(
            of(&[5, 6, 90], &[5, 6]),
            [0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10]
        );
        // two pieces of a look-alike for word 7
        assert_eq!(
            of(&[5, 80, 81, 6], &[5, 7, 6]),
            [0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10]
        );
        // longer than the clean prompt's room
        assert_eq!(of(&[5], &[5, 6])[11], 11);
    }
}
