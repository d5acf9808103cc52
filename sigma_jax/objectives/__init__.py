"""What is minimised: pi0.5's flow matching, or Sigma's TRAF and TSAC around a frozen pi0.5."""
