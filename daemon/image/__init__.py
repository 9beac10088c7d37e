"""Data owner's side: from DICOM files and labels to integer tensors."""
