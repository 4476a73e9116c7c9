//! A real series of volumes, scaled: time to `0..=1`, the peak to 1.

/// Why a file is not a shape.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// Not two columns with a number in the second.
    #[error("line {line}: {cause}; a shape has a header and lines of `timestamp,value`")]
    Line {
        /// Line of the file, the header is 1.
        line: u64,
        /// What is wrong.
        cause: String,
    },
    /// Fewer than two values.
    #[error("a shape needs at least two values, this file has {0}")]
    TooShort(usize),
    /// Nothing to scale to the peak.
    #[error("no value of this shape is above 0")]
    Flat,
}

/// Values at equal distances.
#[derive(Clone, Debug)]
pub struct Shape {
    values: Vec<f64>,
}

impl Shape {
    /// Reads the text of a CSV file: a header and lines of `timestamp,value`. The timestamps are
    /// taken to be equally spaced.
    pub fn parse(text: &str) -> Result<Self, ShapeError> {
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
        let mut values = Vec::new();
        for (index, record) in reader.records().enumerate() {
            let line = index as u64 + 2;
            let wrong = |cause: String| ShapeError::Line { line, cause };
            let record = record.map_err(|error| wrong(error.to_string()))?;
            let field = record.get(1).ok_or_else(|| wrong("no second column".to_owned()))?;
            let value: f64 =
                field.trim().parse().map_err(|_| wrong(format!("{field:?} is not a number")))?;
            if !value.is_finite() || value < 0.0 {
                return Err(wrong(format!("a volume of {value}")));
            }
            values.push(value);
        }
        Self::from_values(&values)
    }

    /// Scales a series.
    pub fn from_values(values: &[f64]) -> Result<Self, ShapeError> {
        if values.len() < 2 {
            return Err(ShapeError::TooShort(values.len()));
        }
        let peak = values.iter().copied().fold(0.0, f64::max);
        if peak <= 0.0 {
            return Err(ShapeError::Flat);
        }
        Ok(Self { values: values.iter().map(|value| value / peak).collect() })
    }

    /// Time and value, both from 0 to 1, time ascending.
    pub fn points(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let last = (self.values.len() - 1) as f64;
        self.values.iter().enumerate().map(move |(at, value)| (at as f64 / last, *value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_scaled() {
        let text = "timestamp,value\n2015-02-26 21:42:53,35\n2015-02-26 21:47:53,70.0\nx,0\n";
        let shape = Shape::parse(text).expect("a good file");
        let points: Vec<_> = shape.points().collect();
        assert_eq!(points, [(0.0, 0.5), (0.5, 1.0), (1.0, 0.0)]);
    }

    #[test]
    fn bad_files_name_the_line() {
        let wrong = |text| Shape::parse(text).expect_err("a bad file").to_string();
        assert!(wrong("timestamp,value\na,1\nb,many\n").starts_with("line 3: \"many\""));
        assert!(wrong("timestamp,value\na\n").starts_with("line 2: no second column"));
        assert!(wrong("timestamp,value\na,-1\n").starts_with("line 2: a volume of -1"));
        assert!(wrong("timestamp,value\na,1\n").contains("at least two"));
        assert!(wrong("timestamp,value\na,0\nb,0\n").contains("above 0"));
    }
}
