//! The word that was probably meant.

/// Longest words that are compared: names here are shorter, and the comparison costs the product of both lengths.
const COMPARED_MAX_CHARS: usize = 100;

/// The candidate that `word` was probably meant to be: one that differs in few letters, or begins with it.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.to_lowercase().chars().take(COMPARED_MAX_CHARS).collect();
    let bound = word.len().div_ceil(3);
    let scored = candidates.into_iter().filter_map(|candidate| {
        let letters: Vec<char> = candidate.to_lowercase().chars().take(COMPARED_MAX_CHARS).collect();
        let distance = distance(&word, &letters);
        let is_start = word.len() >= 3 && letters.starts_with(&word);
        (distance <= bound || is_start).then_some((if is_start { distance.min(bound) } else { distance }, candidate))
    });
    scored.min_by_key(|(distance, candidate)| (*distance, candidate.len())).map(|(_, candidate)| candidate)
}

/// Letters to insert, delete or replace (Levenshtein).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let known = ["permission_mode", "idle_timeout", "memory"];
        assert_eq!(nearest("permision_mode", known), Some("permission_mode"));
        assert_eq!(nearest("idle_timout", known), Some("idle_timeout"));
        assert_eq!(nearest("Memory", known), Some("memory"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
    }
}
