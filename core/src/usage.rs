//! Tokens and money.

use serde::{Deserialize, Serialize};

/// Token counts of one or more model calls, as the agent reports them. `input` excludes cached tokens, `output` excludes reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tokens {
    /// Tokens sent that were not read from the provider's cache.
    pub input: u64,
    /// Tokens answered, without reasoning.
    pub output: u64,
    /// Tokens spent on reasoning.
    pub reasoning: u64,
    /// Tokens read from the provider's cache.
    pub cache_read: u64,
    /// Tokens written to the provider's cache.
    pub cache_write: u64,
}

impl Tokens {
    /// All tokens together.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.input
            .saturating_add(self.output)
            .saturating_add(self.reasoning)
            .saturating_add(self.cache_read)
            .saturating_add(self.cache_write)
    }
}

/// Tokens and cost together; the cost is in millionths of the currency of the price list (US dollars for the shipped catalogue).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Token counts.
    pub tokens: Tokens,
    /// Cost in micro-units of currency.
    pub cost_micros: u64,
}

impl Usage {
    /// Adds `other` to this sum.
    pub const fn add(&mut self, other: &Self) {
        let (sum, more) = (&mut self.tokens, &other.tokens);
        sum.input = sum.input.saturating_add(more.input);
        sum.output = sum.output.saturating_add(more.output);
        sum.reasoning = sum.reasoning.saturating_add(more.reasoning);
        sum.cache_read = sum.cache_read.saturating_add(more.cache_read);
        sum.cache_write = sum.cache_write.saturating_add(more.cache_write);
        self.cost_micros = self.cost_micros.saturating_add(other.cost_micros);
    }
}

/// A price or cost in whole currency units as micro-units; negative, huge and non-finite numbers count as zero.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked in the line before")]
pub fn micros(units: f64) -> u64 {
    let micros = (units * 1e6).round();
    if micros.is_finite() && (0.0..1e15).contains(&micros) { micros as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_become_micro_units_and_nonsense_becomes_nothing() {
        assert_eq!(micros(0.002_422), 2_422);
        for nonsense in [-1.0, f64::NAN, f64::INFINITY, 1e40] {
            assert_eq!(micros(nonsense), 0);
        }
    }
}
