//! "Did you mean": names near to one that is not there.

/// The known names near to `wanted`, nearest first, at most three.
pub(crate) fn near<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut scored: Vec<(f64, &str)> = known
        .map(|name| (strsim::jaro_winkler(wanted, name), name))
        .filter(|(score, _)| *score > 0.7)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_slip_of_the_finger_is_near_and_another_word_is_not() {
        let known = ["sample", "reviewer"];
        assert_eq!(super::near("smaple", known.into_iter()), ["sample"]);
        assert!(super::near("zzz", known.into_iter()).is_empty());
    }
}
