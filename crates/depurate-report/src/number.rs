//! Numbers as people read them, the same in text and HTML.

/// About four significant digits: "8.412", "0.0213", "1.2e-7", "not a number".
pub(crate) fn number(value: f64) -> String {
    let magnitude = value.abs();
    if value.is_nan() {
        "not a number".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "infinite" } else { "-infinite" }.to_owned()
    } else if value == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e6).contains(&magnitude) {
        format!("{value:.2e}")
    } else {
        let decimals = (3 - magnitude.log10().floor() as i32).clamp(0, 4) as usize;
        trim_zeros(format!("{value:.decimals$}"))
    }
}

/// A share in percent, one decimal, or two digits where it is small: "4.0 %", "0.12 %".
pub(crate) fn percent(share: f64) -> String {
    let value = 100.0 * share;
    if value != 0.0 && value.abs() < 0.095 {
        format!("{value:.2} %")
    } else {
        format!("{value:.1} %")
    }
}

/// "0.1 % to 14.2 %"
pub(crate) fn percent_range((low, high): (f64, f64)) -> String {
    format!("{} to {}", percent(low), percent(high))
}

/// Large counts: "812", "1.43 M", "113.7 M".
pub(crate) fn count(n: u64) -> String {
    scaled(n, 1000.0, &["", " k", " M", " G", " T"])
}

/// Sizes of files: "812 B", "2.86 MiB".
pub(crate) fn bytes(n: u64) -> String {
    scaled(n, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"])
}

fn scaled(n: u64, base: f64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let decimals = match (unit, value) {
        (0, _) => 0,
        (_, v) if v < 10.0 => 2,
        _ => 1,
    };
    format!("{value:.decimals$}{}", units[unit])
}

/// "12.4 s", "3 min 20 s", "2 h 5 min"
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    if whole < 3600 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{} h {} min", whole / 3600, whole % 3600 / 60)
    }
}

/// "1.500" -> "1.5", "2.000" -> "2"
pub(crate) fn trim_zeros(digits: String) -> String {
    if digits.contains('.') {
        digits
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned()
    } else {
        digits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let cases = [
            (0.0, "0"),
            (8.412_34, "8.412"),
            (-0.021_349, "-0.0213"),
            (1.5, "1.5"),
            (12_345.678, "12346"),
            (1.234e-7, "1.23e-7"),
            (2e9, "2.00e9"),
            (f64::NAN, "not a number"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(percent(0.04), "4.0 %");
        assert_eq!(percent(0.000_5), "0.05 %");
        assert_eq!(count(35_746_307), "35.7 M");
        assert_eq!(count(12), "12");
        assert_eq!(bytes(3_000_000), "2.86 MiB");
        assert_eq!(duration(200.2), "3 min 20 s");
        assert_eq!(duration(7500.0), "2 h 5 min");
    }
}
