//! Amounts as people write and read them: sizes, cores, durations, tokens, money, ages.

use std::time::Duration;

use openagent_core::time::Timestamp;

/// Now, as a timestamp.
#[must_use]
pub fn now() -> Timestamp {
    time::OffsetDateTime::now_utc().into()
}

/// Takes an amount apart: its number in thousandths, and its unit.
fn amount(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 3 || (number.ends_with('.')) {
        return None;
    }
    let thousandths: u64 = format!("{fraction:0<3}").parse().ok()?;
    Some((whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(thousandths)?, unit.trim()))
}

/// Bytes: `512M`, `2G`, `1.5GiB`, or a plain number. Units are powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size (expected for example 512M or 2G)");
    let (thousandths, unit) = amount(text).ok_or_else(bad)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let bytes = u128::from(thousandths) * (1u128 << shift) / 1000;
    u64::try_from(bytes).map_err(|_| bad())
}

/// Cores as thousandths of one: `2`, `0.5`.
pub fn parse_cpus(text: &str) -> Result<u32, String> {
    let bad = || format!("{text:?} is not a number of cores (expected for example 2 or 0.5)");
    match amount(text) {
        Some((thousandths, "")) if thousandths > 0 => u32::try_from(thousandths).map_err(|_| bad()),
        _ => Err(bad()),
    }
}

/// A duration: `90s`, `15m`, `2h`, `1d`, `500ms`, or a plain number of seconds; `never` is zero.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration (expected for example 30s, 15m or 2h)");
    if text == "never" {
        return Ok(Duration::ZERO);
    }
    let (thousandths, unit) = amount(text).ok_or_else(bad)?;
    let millis_of_unit: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    let millis = u128::from(thousandths) * u128::from(millis_of_unit) / 1000;
    // A year is longer than any session waits, and far from the ends of what travels.
    u64::try_from(millis).ok().filter(|millis| *millis <= 366 * 86_400_000).map(Duration::from_millis).ok_or_else(bad)
}

/// Bytes with a unit: `1.5 GiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut divisor: u64 = 1;
    while unit + 1 < UNITS.len() && bytes / divisor >= 1024 {
        divisor *= 1024;
        unit += 1;
    }
    let tenths = u128::from(bytes) * 10 / u128::from(divisor);
    if tenths % 10 == 0 { format!("{} {}", tenths / 10, UNITS[unit]) } else { format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]) }
}

/// A count, shortened: `999`, `12.3k`, `4.5M`.
#[must_use]
pub fn count(number: u64) -> String {
    match number {
        0..1_000 => number.to_string(),
        1_000..1_000_000 => format!("{}.{}k", number / 1_000, number % 1_000 / 100),
        _ => format!("{}.{}M", number / 1_000_000, number % 1_000_000 / 100_000),
    }
}

/// Money to the last micro-unit: `$0.002422`.
#[must_use]
pub fn cost_exact(micros: u64) -> String {
    format!("${}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

/// Money as people read it: cents from a dollar on, hundredths of cents below.
#[must_use]
pub fn cost(micros: u64) -> String {
    match micros {
        0 => "$0".into(),
        1..50 => "<$0.0001".into(),
        50..1_000_000 => {
            let rounded = (micros + 50) / 100;
            format!("${}.{:04}", rounded / 10_000, rounded % 10_000)
        }
        _ => {
            let cents = micros.saturating_add(5_000) / 10_000;
            format!("${}.{:02}", cents / 100, cents % 100)
        }
    }
}

/// A span of time in its largest unit: `5s`, `3m`, `2h`, `4d`.
#[must_use]
pub fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long something took: `340 ms`, `2.5 s`, then as [`span`].
#[must_use]
pub fn took(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
        _ => span(millis),
    }
}

/// A place in a row: `1st`, `2nd`, `13th`.
#[must_use]
pub fn ordinal(number: u32) -> String {
    let ending = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_cores_and_durations_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("1048576"), Ok(1 << 20));
        assert_eq!(parse_cpus("0.5"), Ok(500));
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("never"), Ok(Duration::ZERO));
        for bad in ["", "M", "-1", "1.", "1.2.3", "5 parsecs", "99999999999999999999", "9999999999999T"] {
            assert!(parse_bytes(bad).is_err() && parse_duration(bad).is_err() && parse_cpus(bad).is_err(), "{bad:?}");
        }
        assert!(parse_cpus("0").is_err());
    }

    #[test]
    fn amounts_are_printed_short() {
        assert_eq!([bytes(512), bytes(1536), bytes(2 << 30)], ["512 B", "1.5 KiB", "2 GiB"]);
        assert_eq!([count(999), count(12_345), count(4_560_000)], ["999", "12.3k", "4.5M"]);
        assert_eq!([cost(0), cost(7), cost(2_422), cost(999_999), cost(1_235_000)], ["$0", "<$0.0001", "$0.0024", "$1.0000", "$1.24"]);
        assert_eq!(cost_exact(2_422), "$0.002422");
        assert_eq!([span(5_000), span(180_000), span(7_200_000), span(86_400_000)], ["5s", "3m", "2h", "1d"]);
        assert_eq!([took(340), took(2_540)], ["340 ms", "2.5 s"]);
        assert_eq!([1, 2, 3, 4, 11, 12, 21, 113].map(ordinal), ["1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "113th"]);
    }
}
