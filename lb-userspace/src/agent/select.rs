//! Finds the backends that match a selector.

use std::net::{IpAddr, SocketAddr};

use crate::{
    state::{BackendId, ServiceSelector},
    view::types::{ApiError, BackendSelector, ErrorCode},
};

/// All backends in `known` that match; if none does, an error that lists similar names.
pub fn select(selector: &BackendSelector, known: &[BackendId]) -> Result<Vec<BackendId>, ApiError> {
    let text = selector.0.trim();
    let (service, address) = match text.rsplit_once('/') {
        Some((service, address)) => (Some(service), address),
        None => (None, text),
    };
    let service = service.map(str::parse::<ServiceSelector>).transpose().map_err(|error| ApiError {
        code: ErrorCode::Invalid,
        message: format!("{error}; a backend is SERVICE/ADDRESS:PORT"),
    })?;
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let fits_address: Box<dyn Fn(&SocketAddr) -> bool> = match (address.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
        (Ok(exact), _) => Box::new(move |address| *address == exact),
        (_, Ok(ip)) => Box::new(move |address| address.ip() == ip),
        _ => {
            let message = format!(
                "{text:?} names no backend: use SERVICE/ADDRESS:PORT, ADDRESS:PORT or ADDRESS{}",
                near(text, known)
            );
            return Err(ApiError { code: ErrorCode::Invalid, message });
        }
    };
    let fits = |id: &&BackendId| {
        service.as_ref().is_none_or(|service| service.admits(&id.service)) && fits_address(&id.address)
    };
    let found: Vec<BackendId> = known.iter().filter(fits).cloned().collect();
    if found.is_empty() {
        let message = format!("no backend {text}{}", near(text, known));
        return Err(ApiError { code: ErrorCode::NotFound, message });
    }
    Ok(found)
}

const NEAR: usize = 3;

fn near(text: &str, known: &[BackendId]) -> String {
    let likeness = |id: &BackendId| {
        let whole = strsim::jaro_winkler(text, &id.to_string());
        whole.max(strsim::jaro_winkler(text, &id.address.to_string()))
    };
    let mut names: Vec<(f64, String)> = known.iter().map(|id| (likeness(id), id.to_string())).collect();
    names.sort_by(|(a, a_name), (b, b_name)| b.total_cmp(a).then_with(|| a_name.cmp(b_name)));
    let names: Vec<String> = names.into_iter().take(NEAR).map(|(_, name)| name).collect();
    if names.is_empty() {
        "; there are no backends".to_owned()
    } else {
        format!("; similar names: {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<BackendId> {
        [("web", "10.2.0.11:8080"), ("web", "10.2.0.12:8080"), ("web", "[fd02::11]:8080"), ("dns", "10.2.0.11:53")]
            .into_iter()
            .map(|(service, address)| BackendId {
                service: service.parse().unwrap(),
                address: address.parse().unwrap(),
            })
            .collect()
    }

    fn chosen(text: &str) -> Result<Vec<String>, ApiError> {
        let found = select(&BackendSelector(text.to_owned()), &known())?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn all_backends_that_fit_are_meant() {
        for (text, expected) in [
            ("web/10.2.0.11:8080", vec!["web/10.2.0.11:8080"]),
            ("10.2.0.11:53", vec!["dns/10.2.0.11:53"]),
            ("10.2.0.11", vec!["web/10.2.0.11:8080", "dns/10.2.0.11:53"]),
            ("web/10.2.0.11", vec!["web/10.2.0.11:8080"]),
            ("fd02::11", vec!["web/[fd02::11]:8080"]),
            ("[fd02::11]", vec!["web/[fd02::11]:8080"]),
            ("[fd02::11]:8080", vec!["web/[fd02::11]:8080"]),
        ] {
            assert_eq!(chosen(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_found_is_said_with_near_names() {
        let error = chosen("web/10.2.0.1:8080").unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.contains("similar names: web/10.2.0.1"), "{error}");
        assert_eq!(chosen("web").unwrap_err().code, ErrorCode::Invalid);
    }
}
