//! Ring sizes are primes.

/// Whether `number` is a prime, by trial division: ring sizes are below a few millions.
pub fn is_prime(number: u32) -> bool {
    let wide = u64::from(number);
    number >= 2 && (2..).take_while(|divisor| divisor * divisor <= wide).all(|divisor| wide % divisor != 0)
}

/// The smallest prime that is at least `number`.
pub fn next_prime(number: u32) -> Option<u32> {
    (number..=u32::MAX).find(|number| is_prime(*number))
}

/// The largest prime that is at most `number`.
pub fn previous_prime(number: u32) -> Option<u32> {
    (2..=number).rev().find(|number| is_prime(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_those_of_the_sieve() {
        let mut sieve = vec![true; 20_000];
        for number in 2..sieve.len() {
            for multiple in (2 * number..sieve.len()).step_by(number) {
                sieve[multiple] = false;
            }
        }
        for (number, prime) in sieve.iter().enumerate().skip(2) {
            assert_eq!(is_prime(number as u32), *prime, "{number}");
        }
        assert!(!is_prime(0) && !is_prime(1));
        assert_eq!((next_prime(16380), previous_prime(16384)), (Some(16381), Some(16381)));
    }
}
