//! What the demo writes: Debian's iso-codes where they are installed, and otherwise some countries in their own scripts.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::args::RecordArgs;
use crate::caller::Caller;
use crate::error::CliError;
use crate::records::{self, Record};

const ISO_CODES: &str = "/usr/share/iso-codes/json";

/// Where the records come from, and what they are.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) source: &'static str,
    pub(super) records: Vec<Record>,
}

/// At most `max` records.
pub(super) async fn records(max: Option<usize>) -> Result<Records, CliError> {
    let mut found = if Path::new(ISO_CODES).is_dir() {
        let how = RecordArgs { object_type: None, type_field: None, id_field: None, prefix: None };
        let sources = records::load(&Caller::Here, &[PathBuf::from(ISO_CODES)]).await?.read(&how)?;
        Records { source: "Debian's iso-codes", records: sources.records }
    } else {
        Records { source: "country names in their own scripts", records: COUNTRIES.iter().map(country).collect() }
    };
    found.records.truncate(max.unwrap_or(usize::MAX));
    Ok(found)
}

fn country((code, name, own): &(&str, &str, &str)) -> Record {
    let fields = [("alpha_2", *code), ("name", *name), ("own_name", *own)];
    let fields: Map<_, _> = fields.into_iter().map(|(k, v)| (k.to_owned(), Value::from(v))).collect();
    Record { object_type: "country".to_owned(), id: (*code).to_owned(), fields }
}

/// ISO 3166-1 code, English name, and the name in a language of the country.
const COUNTRIES: &[(&str, &str, &str)] = &[
    ("AM", "Armenia", "Հայաստան"),
    ("BD", "Bangladesh", "বাংলাদেশ"),
    ("BG", "Bulgaria", "България"),
    ("BR", "Brazil", "Brasil"),
    ("BT", "Bhutan", "འབྲུག་ཡུལ་"),
    ("CI", "Côte d'Ivoire", "Côte d’Ivoire"),
    ("CN", "China", "中国"),
    ("DE", "Germany", "Deutschland"),
    ("EG", "Egypt", "مصر"),
    ("ET", "Ethiopia", "ኢትዮጵያ"),
    ("GE", "Georgia", "საქართველო"),
    ("GR", "Greece", "Ελλάδα"),
    ("IE", "Ireland", "Éire"),
    ("IL", "Israel", "ישראל"),
    ("IN", "India", "भारत"),
    ("IR", "Iran", "ایران"),
    ("IS", "Iceland", "Ísland"),
    ("JP", "Japan", "日本"),
    ("KE", "Kenya", "Kenya"),
    ("KH", "Cambodia", "កម្ពុជា"),
    ("KR", "Korea", "대한민국"),
    ("LA", "Laos", "ລາວ"),
    ("LK", "Sri Lanka", "ශ්‍රී ලංකාව"),
    ("MA", "Morocco", "ⵍⵎⵖⵔⵉⴱ"),
    ("MM", "Myanmar", "မြန်မာ"),
    ("MN", "Mongolia", "Монгол Улс"),
    ("MV", "Maldives", "ދިވެހިރާއްޖެ"),
    ("NP", "Nepal", "नेपाल"),
    ("PK", "Pakistan", "پاکستان"),
    ("PL", "Poland", "Polska"),
    ("SG", "Singapore", "சிங்கப்பூர்"),
    ("TH", "Thailand", "ประเทศไทย"),
    ("TW", "Taiwan", "臺灣"),
    ("UA", "Ukraine", "Україна"),
    ("VN", "Vietnam", "Việt Nam"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_records_are_records() {
        let records = records::by_type(COUNTRIES.iter().map(country));
        assert_eq!(records["country"].len(), COUNTRIES.len());
        assert!(records::array_text(&records["country"]).unwrap().contains("\"own_name\":\"日本\""));
    }
}
