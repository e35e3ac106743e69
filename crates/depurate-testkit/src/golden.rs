//! Golden numbers: `golden/<area>/<case>/{case.json, data.safetensors}`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

/// One case: numbers made by a reference implementation, and how they were made.
#[derive(Debug, Clone)]
pub struct Case {
    /// Folder of the case.
    pub dir: PathBuf,
    /// `case.json`.
    pub json: Value,
    arrays: BTreeMap<String, Array>,
}

/// A stored array; every stored type here fits f64 without loss.
#[derive(Debug, Clone)]
struct Array {
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// The project's `golden/` folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden")
}

impl Case {
    /// Loads `golden/<name>`, for example `schedulers/ddim_lin_eta0`.
    ///
    /// # Panics
    /// When a file is missing or malformed.
    pub fn named(name: &str) -> Self {
        Self::load(&root().join(name))
    }

    /// Loads all cases of `golden/<area>` whose name starts with `prefix`, by name.
    ///
    /// # Panics
    /// When there is none, or as [`Self::load`].
    pub fn all(area: &str, prefix: &str) -> Vec<Self> {
        let dir = root().join(area);
        let entries =
            fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut dirs: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        dirs.retain(|dir| {
            dir.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        });
        dirs.sort();
        assert!(
            !dirs.is_empty(),
            "{}: no case starts with {prefix}",
            dir.display()
        );
        dirs.iter().map(|dir| Self::load(dir)).collect()
    }

    /// Loads the case in `dir`.
    ///
    /// # Panics
    /// When a file is missing or malformed.
    pub fn load(dir: &Path) -> Self {
        let read = |file: &str| {
            let path = dir.join(file);
            fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let json = serde_json::from_slice(&read("case.json"))
            .unwrap_or_else(|error| panic!("{}/case.json: {error}", dir.display()));
        let bytes = read("data.safetensors");
        let file = SafeTensors::deserialize(&bytes)
            .unwrap_or_else(|error| panic!("{}/data.safetensors: {error}", dir.display()));
        let arrays = file
            .iter()
            .map(|(name, view)| (name.to_owned(), Array::from(&view)))
            .collect();
        Self {
            dir: dir.to_owned(),
            json,
            arrays,
        }
    }

    /// The case's folder name.
    pub fn name(&self) -> String {
        self.dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// Whether the case stores an array of this name.
    pub fn has(&self, name: &str) -> bool {
        self.arrays.contains_key(name)
    }

    /// The array `name` as a float tensor on `device`.
    ///
    /// # Panics
    /// When it is missing or has another rank.
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let array = self.array(name);
        assert_eq!(
            array.shape.len(),
            D,
            "{}: rank of {name} {:?}",
            self.name(),
            array.shape
        );
        to_tensor(&array.values, &array.shape, device)
    }

    /// The rows of the array `name: [N, …]` as `N` tensors of rank `D`; none if there is no such array.
    ///
    /// # Panics
    /// When it has another rank than `D + 1`.
    pub fn rows<const D: usize>(&self, name: &str, device: &Device) -> Vec<Tensor<D>> {
        let Some(array) = self.arrays.get(name) else {
            return Vec::new();
        };
        assert_eq!(
            array.shape.len(),
            D + 1,
            "{}: rank of {name} {:?}",
            self.name(),
            array.shape
        );
        let width = array.shape[1..].iter().product();
        array
            .values
            .chunks(width)
            .map(|row| to_tensor(row, &array.shape[1..], device))
            .collect()
    }

    /// The values of the array `name`, in row-major order.
    ///
    /// # Panics
    /// When it is missing.
    pub fn numbers(&self, name: &str) -> &[f64] {
        &self.array(name).values
    }

    /// The values of an array of timesteps or counts.
    ///
    /// # Panics
    /// When it is missing or holds anything but whole numbers from 0.
    pub fn integers(&self, name: &str) -> Vec<usize> {
        let whole = |&value: &f64| {
            assert!(
                value >= 0.0 && value.fract() == 0.0,
                "{}: {name} holds {value}",
                self.name()
            );
            value as usize
        };
        self.numbers(name).iter().map(whole).collect()
    }

    fn array(&self, name: &str) -> &Array {
        self.arrays
            .get(name)
            .unwrap_or_else(|| panic!("{}: no array {name}", self.dir.display()))
    }
}

impl From<&TensorView<'_>> for Array {
    fn from(view: &TensorView<'_>) -> Self {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&raw| f64::from(f32::from_le_bytes(raw)))
                .collect(),
            Dtype::F64 => data
                .as_chunks::<8>()
                .0
                .iter()
                .map(|&raw| f64::from_le_bytes(raw))
                .collect(),
            Dtype::I64 => data
                .as_chunks::<8>()
                .0
                .iter()
                .map(|&raw| i64::from_le_bytes(raw) as f64)
                .collect(),
            Dtype::U8 | Dtype::BOOL => data.iter().map(|&raw| f64::from(raw)).collect(),
            other => panic!("golden arrays of type {other:?} are not read"),
        };
        Self {
            shape: view.shape().to_vec(),
            values,
        }
    }
}

fn to_tensor<const D: usize>(values: &[f64], shape: &[usize], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    Tensor::from_data(TensorData::new(values, shape.to_vec()), device)
}
