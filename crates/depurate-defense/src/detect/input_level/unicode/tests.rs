#![allow(clippy::unwrap_used)]
use super::*;

/// The only finding of a text.
fn only(text: &str) -> UnicodeFinding {
    let mut findings = check(text);
    assert_eq!(findings.len(), 1, "{text}: {findings:#?}");
    findings.remove(0)
}

#[test]
fn homoglyphs_in_a_latin_word_are_named_with_what_they_look_like() {
    let finding = only("a ph\u{B20}to of a cat");
    assert_eq!(
        (finding.kind, finding.confidence),
        (UnicodeKind::Confusable, Confidence::Medium)
    );
    assert_eq!((finding.position, finding.byte), (4, 4));
    assert_eq!(finding.code_point, "U+0B20");
    assert_eq!(finding.name.as_deref(), Some("ORIYA LETTER TTHA"));
    assert_eq!(finding.word, "ph\u{B20}to");
    assert!(finding.looks_like.is_some());

    for (letter, looks) in [
        ('\u{585}', "o"), // Armenian
        ('\u{B66}', "o"), // Oriya digit zero
        ('\u{43E}', "o"), // Cyrillic
        ('\u{3BF}', "o"), // Greek
        ('\u{474}', "V"), // Cyrillic izhitsa
    ] {
        let finding = only(&format!("a ph{letter}to of a cat"));
        assert_eq!(finding.kind, UnicodeKind::Confusable, "{letter}");
        assert_eq!(finding.looks_like.as_deref(), Some(looks), "{letter}");
    }
    // psi looks like no Latin letter
    let finding = only("a ph\u{470}to of a cat");
    assert_eq!(finding.kind, UnicodeKind::MixedScript);
    assert_eq!(finding.looks_like, None);
}

#[test]
fn zero_width_characters_are_found_inside_and_between_words() {
    for (text, position, word) in [
        ("\u{200B} a dog", 0, "\u{200B}"),
        ("a d\u{200B}og", 3, "d\u{200B}og"),
        ("a dog\u{FEFF}", 5, "dog\u{FEFF}"),
        ("a do\u{200D}g", 4, "do\u{200D}g"),
        ("a do\u{AD}g", 4, "do\u{AD}g"),
        ("7\u{FE0F} dogs", 1, "7\u{FE0F}"),
    ] {
        let finding = only(text);
        assert_eq!(
            (finding.kind, finding.confidence),
            (UnicodeKind::Hidden, Confidence::Medium),
            "{text:?}"
        );
        assert_eq!((finding.position, finding.word.as_str()), (position, word));
    }
    assert_eq!(
        only("a \u{200B}dog").name.as_deref(),
        Some("ZERO WIDTH SPACE")
    );
    assert_eq!(only("a\u{7}dog").kind, UnicodeKind::Hidden);
    assert_eq!(only("a\u{2003}dog").confidence, Confidence::Low);
    assert_eq!(only("a \u{202E}dog").confidence, Confidence::High);
    assert_eq!(only("a dog\u{E0041}").confidence, Confidence::High);
}

#[test]
fn an_accent_alone_is_weak_evidence_and_a_language_that_writes_them_is_none() {
    let finding = only("a ph\u{F5}to of a cat");
    assert_eq!(
        (finding.kind, finding.confidence),
        (UnicodeKind::Accent, Confidence::Low)
    );
    assert_eq!(finding.looks_like.as_deref(), Some("o"));
    assert_eq!(only("a ph\u{20D}to of a cat").kind, UnicodeKind::Accent);
    // the same in decomposed form: the mark is the finding
    let mark = only("a pho\u{303}to of a cat");
    assert_eq!((mark.kind, mark.position), (UnicodeKind::Accent, 5));
    for text in [
        "une forêt enchantée au crépuscule, très détaillée",
        "ein Fuchs läuft über die Straße, Ölgemälde",
        "kırmızı balık, mavi arka plan üzerinde çizim",
        "hình ảnh một chú mèo đang ngủ trên ghế",
    ] {
        assert_eq!(check(text), [], "{text}");
    }
}

#[test]
fn one_script_is_never_flagged_whichever_it_is() {
    for text in [
        "a red cartoon fish on a blue background, 4k, trending",
        "рыжий кот сидит на окне, масло, холст",
        "сор и сон", // every letter looks like a Latin one
        "μια κόκκινη γάτα στο παράθυρο",
        "一只红色的猫坐在窗边，油画风格",
        "赤い猫が窓辺に座っている、Tシャツ、アニメ風",
        "창가에 앉아 있는 빨간 고양이, K팝 스타일",
        "قطة حمراء تجلس بجانب النافذة",
        "می\u{200C}خواهم یک گربه ببینم",
        "חתול אדום יושב ליד החלון\u{200F}, 4k",
        "खिड़की पर बैठी लाल बिल्ली, क्\u{200D}ष",
        "ଝରକା ପାଖରେ ବସିଥିବା ନାଲି ବିଲେଇ ଠାରେ",
        "แมวสีแดงนั่งอยู่ริมหน้าต่าง",
        "կարմիր կատուն պատուհանի մոտ",
        "ⴰⵎⵓⵛⵛ ⴰⵣⴳⴳⴰⵖ",
        "a sign that says Привет and another that says 你好",
        "рисунок в стиле Disney, 4k",
    ] {
        assert_eq!(check(text), [], "{text}");
    }
}

#[test]
fn emoji_with_their_joiners_and_selectors_are_text() {
    for text in [
        "a family \u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467} at the beach",
        "a heart \u{2764}\u{FE0F} and \u{2764}\u{FE0F}\u{200D}\u{1F525}",
        "a wave \u{1F44B}\u{1F3FD}",
        "keycap 1\u{FE0F}\u{20E3}",
        "flag \u{1F3F4}\u{E0067}\u{E0062}\u{E0065}\u{E006E}\u{E0067}\u{E007F} and \u{1F1EB}\u{1F1F7}",
        "20° © ™ “quoted” – dash…",
    ] {
        assert_eq!(check(text), [], "{text}");
    }
}

#[test]
fn letters_in_another_dress_and_whole_words_that_pass_for_latin_are_confusable() {
    for (text, count, looks) in [
        ("a \u{1D5BD}og", 1, "d"),                      // mathematical
        ("a \u{FF44}og", 1, "d"),                       // full width
        ("a d\u{251}g", 1, "a"),                        // phonetic alpha
        ("a \u{FB01}sh", 1, "fi"),                      // ligature
        ("\u{430} dog in the sun", 1, "a"),             // a Cyrillic word of one letter
        ("a \u{441}\u{43E}\u{440} in the sun", 3, "c"), // "cop" in Cyrillic
    ] {
        let findings = check(text);
        assert_eq!(findings.len(), count, "{text}: {findings:?}");
        assert_eq!(findings[0].kind, UnicodeKind::Confusable, "{text}");
        assert_eq!(findings[0].looks_like.as_deref(), Some(looks), "{text}");
    }
    // a Latin letter in a Cyrillic word is found as well
    let finding = only("рыжий к\u{6F}т сидит");
    assert_eq!(finding.character, 'o');
}

#[test]
fn any_text_is_checked_and_positions_point_at_the_characters() {
    let texts = [
        "",
        " ",
        "\u{0}",
        "\u{10FFFF}\u{E000}",
        "o\u{301}\u{301}\u{301}\u{585}z",
        "\u{200D}\u{200D}",
    ];
    let mut state = 1u32;
    let random = (0..2000).map(|_| {
        let draw = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from_u32(state >> 12).unwrap_or('a')
        };
        (0..12).map(draw).collect::<String>()
    });
    for text in texts.iter().map(ToString::to_string).chain(random) {
        let chars: Vec<(usize, char)> = text.char_indices().collect();
        let findings = check(&text);
        assert!(findings.is_sorted_by_key(|finding| finding.position));
        for finding in findings {
            assert_eq!(chars[finding.position], (finding.byte, finding.character));
            assert!(finding.word.contains(finding.character));
        }
    }
}
