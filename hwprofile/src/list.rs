//! The kernel's notation for sets of numbers: `0-3,8,10-11`.

use std::collections::BTreeSet;

/// Larger numbers are taken for a mistake: no machine has as many CPUs or nodes.
const NUMBER_MAX: u32 = 1 << 16;

/// The numbers of a list; `None` if it is none. An empty text is the empty list.
pub fn parse(text: &str) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for part in text.trim().split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last > NUMBER_MAX {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// The shortest list of the numbers, as a person writes it.
pub fn format(numbers: impl IntoIterator<Item = u32>) -> String {
    let numbers: BTreeSet<u32> = numbers.into_iter().collect();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let parts: Vec<String> = ranges
        .iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    if parts.is_empty() { "none".into() } else { parts.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        let set = |numbers: &[u32]| Some(numbers.iter().copied().collect::<BTreeSet<_>>());
        assert_eq!(parse("0-3,8,10-11\n"), set(&[0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse(""), set(&[]));
        assert_eq!(parse("3-1"), None);
        assert_eq!(parse("a"), None);
        assert_eq!(parse("0-4000000000"), None);
        assert_eq!(format([11, 0, 1, 2, 8, 10]), "0-2,8,10-11");
        assert_eq!(format([]), "none");
    }
}
