//! Pages about screened prompts, and what hostile prompts do to them: nothing.
#![allow(clippy::unwrap_used)]

use depurate_report::{
    Band, CheckSummary, Evidence, Picture, Png, PromptPage, ResponseCurve, Series, Verdict,
    render_curve_svg, render_prompt_html,
};

const HOSTILE: &str = "</code><script>alert(1)</script>\" onload='x' {{ 7 * 7 }} \u{202E}";

fn png() -> Png {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(3, 2, image::Rgb([9, 9, 9]));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    Png::from_bytes(&bytes.into_inner()).unwrap()
}

fn curve(text: &str) -> ResponseCurve {
    ResponseCurve {
        title: text.into(),
        caption: text.into(),
        x_label: text.into(),
        y_label: text.into(),
        series: vec![Series {
            label: text.into(),
            points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)],
        }],
        band: Some(Band {
            label: text.into(),
            points: vec![(0.0, 0.5, 1.5), (1.0, 1.0, 2.0)],
        }),
    }
}

fn page(text: &str) -> PromptPage {
    PromptPage {
        verdict: Verdict::Suspicious,
        prompt: text.into(),
        why: text.into(),
        checks: vec![CheckSummary {
            detector: text.into(),
            verdict: Verdict::Suspicious,
            score: Some(0.25),
            threshold: Some(0.125),
            stated_fpr: Some(0.05),
            p_value: Some(0.01),
            reason: text.into(),
        }],
        rate: text.into(),
        calls: text.into(),
        evidence: vec![Evidence::from(curve(text))],
        pictures: vec![Picture {
            title: text.into(),
            caption: text.into(),
            png: png(),
        }],
        facts: vec![(text.into(), text.into())],
        json: text.into(),
        made_by: text.into(),
    }
}

#[test]
fn a_page_shows_all_that_it_is_given_and_loads_nothing() {
    let html = render_prompt_html(&page("a photo of a cat")).unwrap();
    for part in [
        "<h1>suspicious</h1>",
        "a photo of a cat",
        "0.25",
        "above the threshold 0.125",
        "Stated false-positive rate",
        "src=\"data:image/png;base64,",
        "class=\"band\"",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("http://") && !html.contains("https://"));
    let mut bare = page("a cat");
    bare.checks[0].score = None;
    bare.checks[0].threshold = None;
    bare.checks[0].stated_fpr = None;
    bare.evidence.clear();
    bare.pictures.clear();
    let html = render_prompt_html(&bare).unwrap();
    assert!(!html.contains("the threshold") && !html.contains("What there is to see"));
}

#[test]
fn hostile_strings_are_text() {
    let html = render_prompt_html(&page(HOSTILE)).unwrap();
    assert!(!html.contains("<script") && !html.contains("onload='x'"));
    assert!(html.contains("&lt;script&gt;"));
    assert!(html.contains("{{ 7 * 7 }}"));
    let svg = render_curve_svg(&curve(HOSTILE)).unwrap().unwrap();
    assert!(!svg.contains("<script") && svg.contains("&lt;script&gt;"));
}

#[test]
fn a_curve_is_a_picture_of_its_own_if_there_is_a_point() {
    let svg = render_curve_svg(&curve("change")).unwrap().unwrap();
    assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
    assert!(svg.contains("class=\"band\"") && svg.contains("class=\"curve\""));
    let mut none = curve("change");
    none.series[0].points = vec![(f64::NAN, 0.0)];
    none.band = None;
    assert_eq!(render_curve_svg(&none).unwrap(), None);
}
